"""Any gate in any residual network: the registry of gates, and where in a block they can stand.

registry   the gates by name
blocks     torchvision's residual blocks, with the places where a gate can stand
modules    a gate on the input or the output of any module, and the blocks of timm
sites      finds the places of a network
adding     add_gates: puts a gate into every block of a network
identity   gates that start so that the network computes what it computes without them
bases      the plain network that a network with gates is made of, and its weights
"""

from models.gates.adding import POSITIONS, add_gates
from models.gates.bases import base_of, renamed
from models.gates.identity import start_as_identity
from models.gates.registry import create_gate, gates_of, knobs, list_gates

__all__ = [
    "POSITIONS",
    "add_gates",
    "base_of",
    "create_gate",
    "gates_of",
    "knobs",
    "list_gates",
    "renamed",
    "start_as_identity",
]
