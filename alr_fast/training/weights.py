"""The weights of a model as they are saved."""

from torch import Tensor, nn

from alr_fast.errors import UserError


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model by name, on the CPU, as safetensors stores it.

    Tensors that share their memory, as tied weights do, are stored under each of their names: the
    file then has every name that `nn.Module.load_state_dict` asks for, and is the same from a CPU
    as from a GPU. (`safetensors.torch.save_model` would leave names out.)

    Raises:
        UserError: A module has state that is no parameter and no buffer, which neither the file nor
            a checkpoint can hold; the argument is ``model``.
    """
    weights: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or name.endswith(_EXTRA):
            raise UserError(
                f"its module {name.removesuffix(_EXTRA).rstrip('.') or 'itself'} has extra state "
                "(get_extra_state), which is not saved; keep it in a buffer (register_buffer), or "
                "pass another model",
                argument="model",
            )
        own = tensor.detach().cpu().contiguous()
        memory = own.untyped_storage().data_ptr()
        weights[name] = own.clone() if memory in taken else own
        taken.add(memory)
    return weights


_EXTRA = "_extra_state"  # of nn.Module.state_dict
