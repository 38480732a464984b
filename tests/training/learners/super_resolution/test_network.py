import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.conftest import draw_image
from training.learners.super_resolution.network import Bicubic, Generator, ServedGenerator
from training.vision.backbones import load_body

BODY = "shufflenet_v2_x0_5"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_module_agrees_with_pillow(scale):
    image = draw_image((120, 130, 140), 0, (30, 24))
    tensor = torch.tensor(np.asarray(image)).permute(2, 0, 1).unsqueeze(0).float()

    (ours,) = Bicubic(scale)(tensor)

    size = 30 * scale, 24 * scale
    expected = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).astype(float)
    inner = slice(2 * scale, -2 * scale)
    difference = np.abs(ours.clamp(0, 255).permute(1, 2, 0).numpy() - expected)[inner, inner]
    assert difference.max() < 1.5  # Pillow rounds after each of its two passes.


def test_untrained_generator_is_bicubic_resizing_at_any_size():
    generator = Generator(load_body(BODY, None), 2, width=8, blocks=1).eval()
    for size in ((32, 32), (33, 50)):
        image = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
        channels_first = image.permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            assert torch.allclose(generator(image)[0], generator.bicubic(channels_first), atol=1e-6)


def test_bicubic_part_stays_in_float32_under_autocast():
    generator = Generator(load_body(BODY, None), 2, width=8, blocks=1).eval()
    image = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        exact = generator(image)[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(generator(image)[0], exact, atol=1e-6)


def test_training_updates_batchnorm_statistics_except_those_of_the_body():
    generator = Generator(load_body(BODY, None), 2, width=8, blocks=1).train()
    before = {name: value.clone() for name, value in generator.named_buffers() if "running_mean" in name}

    generator(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8))

    moved = {
        name for name, value in generator.named_buffers() if name in before and not torch.equal(value, before[name])
    }
    assert moved
    assert not any(".body." in name for name in moved)


def test_served_pixels_are_rounded_and_clamped():
    class OutOfRange(torch.nn.Module):
        def forward(self, image):
            levels = torch.tensor([-3.0, 0.4999, 100.6, 300.0]) / 255
            return (levels.view(1, 1, 2, 2).expand(1, 3, 2, 2),)

    (served,) = ServedGenerator(OutOfRange())(torch.zeros(1, 1, 1, 3, dtype=torch.uint8))

    assert served.dtype == torch.uint8
    assert served[0, :, :, 0].tolist() == [[0, 0], [101, 255]]
