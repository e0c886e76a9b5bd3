"""LPIPS from files on disk: the published formula, both ways of naming its tensors, and clear words without them."""

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize
from torchvision.models import alexnet, vgg16

from mmldm.codec.perceptual import LPIPS, Perceptual

ALEX = (alexnet, (64, 192, 384, 256, 256), (1, 4, 7, 9, 11))
VGG = (vgg16, (64, 128, 256, 512, 512), (3, 8, 15, 22, 29))
SLICES = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}  # of AlexNet's convolutions in the lpips package


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def features(network):
    """The convolutions of a torchvision network with random weights."""
    with torch.device("meta"):
        layers = network(weights=None).features
    layers.to_empty(device="cpu")
    for i, p in enumerate(layers.parameters()):
        p.data = draw(*p.shape, seed=i) * (1.7 * (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1)
    return layers.eval()


def heads(widths, seed=5):
    return {f"lin{k}.model.1.weight": draw(1, n, 1, 1, seed=seed + k).abs() for k, n in enumerate(widths)}


@pytest.fixture(scope="module")
def alex(tmp_path_factory):
    """Random AlexNet features and heads, as torchvision and lpips would save them: the network, its files."""
    folder, network = tmp_path_factory.mktemp("alex"), features(alexnet)
    torch.save({f"features.{k}": v for k, v in network.state_dict().items()}, folder / "alexnet.pth")
    torch.save(heads(ALEX[1]), folder / "alex.pth")
    return network, [folder / "alexnet.pth", folder / "alex.pth"]


def published(network, taps, head, a, b):
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = (((z - shift[:, None, None]) / scale[:, None, None]) for z in (a, b))
    total = 0
    for i, layer in enumerate(network):
        x, y = layer(x), layer(y)
        if i in taps:
            error = (normalize(x, dim=1, eps=1e-10) - normalize(y, dim=1, eps=1e-10)) ** 2
            total = total + (error * head[f"lin{taps.index(i)}.model.1.weight"]).sum(1).mean((1, 2))
        if i == taps[-1]:
            break
    return total


def test_it_is_the_published_formula(alex):
    network, files = alex
    a, b = draw(2, 3, 64, 48), draw(2, 3, 64, 48, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(LPIPS(files)(a, b), published(network, ALEX[2], heads(ALEX[1]), a, b), rtol=1e-4, atol=1e-6)
    assert float(LPIPS(files)(a, a).abs().max()) == 0


def test_vgg_is_told_by_its_first_kernel(tmp_path):
    network = features(vgg16)
    save_file({f"features.{k}": v for k, v in network.state_dict().items()} | heads(VGG[1]), tmp_path / "all.safetensors")
    a, b = draw(1, 3, 32, 32), draw(1, 3, 32, 32, seed=1)
    with torch.no_grad():
        found = LPIPS(tmp_path / "all.safetensors")(a, b)
        torch.testing.assert_close(found, published(network, VGG[2], heads(VGG[1]), a, b), rtol=1e-4, atol=1e-6)


def test_the_names_of_the_lpips_package_are_known(alex, tmp_path):
    network, files = alex
    state = {f"net.slice{SLICES[int(k.split('.')[0])]}.{k}": v for k, v in network.state_dict().items()}
    state |= {k.replace("lin", "lins."): v for k, v in heads(ALEX[1]).items()} | {"scaling_layer.shift": torch.zeros(3)}
    torch.save(state, tmp_path / "lpips.pth")
    a, b = draw(1, 3, 40, 40), draw(1, 3, 40, 40, seed=1)
    assert torch.equal(LPIPS(tmp_path / "lpips.pth")(a, b), LPIPS(files)(a, b))


def test_clips_are_judged_frame_by_frame_and_grey_pictures_too(alex):
    lpips, a, b = LPIPS(alex[1]), draw(2, 3, 3, 32, 32), draw(2, 3, 3, 32, 32, seed=1)
    frames = torch.stack([lpips(a[:, :, t], b[:, :, t]) for t in range(3)])
    torch.testing.assert_close(lpips(a, b), frames.mean(0))
    torch.testing.assert_close(lpips(a[:, :1], b[:, :1]), lpips(a[:, :1].repeat(1, 3, 1, 1, 1), b[:, :1].repeat(1, 3, 1, 1, 1)))


def test_the_term_has_gradients_and_no_weights_of_its_own(alex):
    term, hat = Perceptual(2.0, alex[1]), draw(1, 3, 32, 32).requires_grad_()
    value = term(hat, draw(1, 3, 32, 32, seed=1))
    value.backward()
    assert value.item() > 0 and bool(hat.grad.isfinite().all()) and float(hat.grad.abs().sum()) > 0
    assert not list(term.parameters()) and not term.state_dict()
    torch.testing.assert_close(value, 2 * LPIPS(alex[1])(hat, draw(1, 3, 32, 32, seed=1)).mean())
    flat = torch.zeros(1, 3, 32, 32, requires_grad=True)
    term(flat, torch.zeros(1, 3, 32, 32)).backward()
    assert bool(flat.grad.isfinite().all())


def test_without_weights_it_says_what_it_does_instead():
    with pytest.warns(UserWarning, match="multi-scale gradients instead"):
        term = Perceptual(0.5)
    x = draw(1, 3, 8, 8)
    assert float(term(x + 1, x)) < 1e-6 < float(term(x + draw(1, 3, 8, 8, seed=1), x))  # an offset has no gradient


def test_wrong_files_and_pictures_are_refused(alex, tmp_path):
    network, head = alex[1]
    with pytest.raises(ValueError, match="no head.0 .5 missing"):
        LPIPS(network)
    with pytest.raises(ValueError, match="no features.0.weight"):
        LPIPS(head)
    with pytest.raises(ValueError, match="not there"):
        LPIPS(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="state dict"):
        LPIPS(tmp_path / "text.pth")
    with pytest.raises(ValueError, match="32 x 32"):
        LPIPS(alex[1])(torch.zeros(1, 3, 31, 40), torch.zeros(1, 3, 31, 40))
