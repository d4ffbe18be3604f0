"""From the arguments of `clf-batch` to images: local files, URLs, lists, tables and tar archives."""
