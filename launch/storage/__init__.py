"""A run in an object store: uploads while it trains, the download when it continues elsewhere."""
