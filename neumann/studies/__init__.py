"""What runs say together: tables and figures. Never imports torch at import time."""
