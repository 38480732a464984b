import pytest
import torch

from training.learners.segmentation.network import Segmenter, ServedSegmenter
from training.vision.backbones import load_body


@pytest.fixture(scope="module", params=[True, False], ids=["full resolution", "half resolution"])
def network(request):
    return Segmenter(load_body("resnet18", None), 3, full_resolution=request.param, dropout=0.0).eval()


@pytest.mark.parametrize("size", [(36, 48), (37, 51), (64, 33)])
def test_every_pixel_of_an_image_of_any_size_is_classified(network, size):
    image = torch.zeros(1, *size, 3, dtype=torch.uint8)
    with torch.no_grad():
        (logits,) = network(image)
        mask, confidence = ServedSegmenter(network, 1.5)(image)

    assert logits.shape == (1, 3, *size)
    assert torch.equal(mask, logits.argmax(dim=1).to(torch.uint8))
    expected = (logits / 1.5).softmax(dim=1).amax(dim=1) * 255
    assert (confidence.float() - expected).abs().max() <= 0.51
