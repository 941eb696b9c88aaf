"""The one exception that ends a script in a single line."""


class UserError(Exception):
    """A mistake that the user can fix; the message is one line that names the fix.

    ``utils.command_line.cli.run`` prints it on stderr and exits with code 2, without a traceback.
    """


SHARED_MEMORY = (
    "the shared memory is full, in which the processes that decode hand over images: give fewer --workers "
    "(0 needs none), or a larger /dev/shm (docker run --shm-size 8g)"
)
