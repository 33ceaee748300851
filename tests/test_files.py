"""Files appear whole or not at all, whatever library writes them; a folder belongs to one program at a time."""
