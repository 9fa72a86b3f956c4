"""Choices and forecasts made on left-out seen classes, which stand in for unseen classes."""
