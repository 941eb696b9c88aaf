"""What a computation would ask of a GPU, counted on a CPU: kernels, and waits for their results."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# They only describe memory that is there, or set it aside.
_NO_KERNEL = {
    "alias",
    "as_strided",
    "detach",
    "expand",
    "permute",
    "select",
    "slice",
    "split",
    "split_with_sizes",
}
_NO_KERNEL |= {"squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view", "_reshape_alias"}
_NO_KERNEL |= {"lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}  # the host needs their result to go on


class Kernels(TorchDispatchMode):
    """Count torch's operations within the block.

    A foreach operation counts once if a GPU would compute all its tensors together, which it does where they
    are alike from list to list, and otherwise once for each tensor.

    Attributes:
        launched: kernels, by name.
        waits: operations for whose result the host waits, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched, self.waits = Counter[str](), Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        namespace, name = func._schema.name.split("::")
        if name in _WAITS:
            self.waits[name] += 1
        elif namespace == "aten" and name not in _NO_KERNEL:
            self.launched[name] += _launches(name, args)
        return func(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        """All kernels."""
        return sum(self.launched.values())


def _launches(name: str, args: Sequence[Any]) -> int:
    if not name.startswith("_foreach_"):
        return 1
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor)]
    together = all(
        len({(one.shape, one.stride()) for one in alike}) == 1 for alike in zip(*lists, strict=True)
    ) and all(len({(one.dtype, one.device) for one in of_list}) == 1 for of_list in lists)
    return 1 if together else len(lists[0])


def kernels_of(function: Callable[[], object]) -> Kernels:
    """Return what a call needs."""
    with Kernels() as counted:
        function()
    return counted
