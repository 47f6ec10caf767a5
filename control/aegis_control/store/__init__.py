"""The store: tables, migrations and every SQL statement of control, one file per noun."""
