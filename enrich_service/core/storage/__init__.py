"""The database, its migrations, and files of the data folder."""
