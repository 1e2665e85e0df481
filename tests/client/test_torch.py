"""The torch adapter: names, roles, and a faithful way there and back."""

from typing import Any

import numpy as np
import pytest
import torch

from steelyard.chain.errors import SteelyardError
from steelyard.chain.model import Role, decode_model
from steelyard.client.quantize import build_manifest, dequantize_model, quantize_model
from steelyard.client.torch import dump, load


def make_net(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 2),
    )


def refuse(code: str, call: Any, *arguments: Any) -> None:
    with pytest.raises(SteelyardError) as caught:
        call(*arguments)
    assert caught.value.code == code


def test_each_kind_of_tensor_gets_the_role_that_suits_it() -> None:
    net = make_net()
    net[0].bias.requires_grad = False
    arrays = dump(net)
    assert arrays.roles == {
        "0.weight": Role.TRAIN,
        "0.bias": Role.KEEP,
        "1.weight": Role.TRAIN,
        "1.bias": Role.TRAIN,
        "1.running_mean": Role.AVERAGE,
        "1.running_var": Role.AVERAGE,
        "1.num_batches_tracked": Role.KEEP,
        "3.weight": Role.TRAIN,
        "3.bias": Role.TRAIN,
    }
    assert arrays["1.num_batches_tracked"].dtype == np.int64


def test_roles_can_be_given_for_names_and_for_modules() -> None:
    roles = dump(make_net(), {"3": "local", "1": Role.LOCAL, "1.weight": "keep"}).roles
    assert roles["3.weight"] is roles["3.bias"] is roles["1.running_var"] is Role.LOCAL
    assert roles["1.weight"] is Role.KEEP
    assert roles["0.weight"] is Role.TRAIN


def test_a_role_for_nothing_or_of_no_kind_is_refused() -> None:
    refuse("model_role", dump, make_net(), {"4": "local"})
    refuse("model_role", dump, make_net(), {"3.wei": "local"})
    refuse("model_role", dump, make_net(), {"3": "personal"})


def test_what_was_dumped_loads_into_another_module() -> None:
    source, target = make_net(0), make_net(1)
    source(torch.ones(2, 1, 4, 4))
    assert load(target, dump(source)) is target
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name])


def test_dumped_arrays_do_not_share_memory_with_the_module() -> None:
    net = make_net()
    arrays = dump(net)
    arrays["3.bias"] += 1
    assert not np.array_equal(arrays["3.bias"], dump(net)["3.bias"])
    load(net, arrays)
    arrays["3.bias"] += 1
    assert not np.array_equal(arrays["3.bias"], dump(net)["3.bias"])


def test_a_module_survives_the_way_through_the_chains_format() -> None:
    net = make_net()
    net(torch.ones(2, 1, 4, 4))
    arrays = dump(net)
    model = decode_model(quantize_model(arrays, build_manifest(arrays)))
    back = load(make_net(1), dequantize_model(model))
    for name, tensor in net.state_dict().items():
        assert torch.allclose(tensor, back.state_dict()[name], atol=2.0**-17)
    assert back[1].num_batches_tracked == 1


def test_local_tensors_stay_as_they_are_when_a_model_is_loaded() -> None:
    net, other = make_net(0), make_net(1)
    arrays = dump(net, {"3": "local"})
    model = decode_model(quantize_model(arrays, build_manifest(arrays)))
    kept = other[3].weight.detach().clone()
    load(other, dequantize_model(model))
    assert torch.equal(other[3].weight, kept)


def test_read_only_arrays_load() -> None:
    arrays = dump(make_net())
    for array in arrays.values():
        array.flags.writeable = False
    load(make_net(1), arrays)


def test_another_network_is_refused_and_left_alone() -> None:
    net = make_net()
    before = dump(net)
    refuse("model_tensor", load, net, {"0.bias": np.ones(4), "9.weight": np.ones(3)})
    refuse("model_tensor", load, net, {"0.bias": np.ones(4), "3.bias": np.ones(3)})
    assert all(np.array_equal(array, before[name]) for name, array in dump(net).items())


def test_tied_weights_appear_once() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(3, 3, bias=False)
            self.second = torch.nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

    assert set(dump(Tied())) == {"first.weight"}


def test_half_precision_is_widened_where_numpy_has_no_name_for_it() -> None:
    net = torch.nn.Linear(2, 2).to(torch.bfloat16)
    arrays = dump(net)
    assert arrays["weight"].dtype == np.float32
    back = load(torch.nn.Linear(2, 2).to(torch.bfloat16), arrays)
    assert torch.equal(back.weight, net.weight)
    assert dump(torch.nn.Linear(2, 2).half())["weight"].dtype == np.float16


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, dtype=torch.float8_e4m3fn),
        torch.zeros(2, dtype=torch.uint16),
        torch.zeros(2, device="meta"),
        torch.eye(2).to_sparse(),
    ],
    ids=["complex", "float8", "uint16", "meta", "sparse"],
)
def test_tensors_without_a_place_in_a_model_are_refused(tensor: torch.Tensor) -> None:
    net = torch.nn.Linear(2, 2)
    net.register_buffer("other", tensor)
    refuse("model_dtype", dump, net)


def test_a_view_that_is_negated_late_is_dumped_negated() -> None:
    net = torch.nn.Linear(2, 2)
    net.register_buffer("other", torch.tensor([1j]).conj().imag)
    assert dump(net)["other"] == [-1]
