"""Where labelled images come from: one module for each kind of source.

folders      the paper's train/, val_on_train/ and val/; or one folder of class folders
"""
