"""The one exception that ends a script in a single line."""


class UserError(Exception):
    """Something the user can mend: its message is one line that names the fix.

    ``utils.cli.run`` prints it on stderr and exits with code 2, without a traceback.
    """
