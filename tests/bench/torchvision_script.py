"""The loop that tutorials teach, on photographs: `python tests/bench/torchvision_script.py --data DIR --weights FILE`.

The peer of `python -m tests.bench`. DIR has train/CLASS and val/CLASS. torchvision's resnet50, its body frozen, in evaluation and
under no_grad, a new head; ImageFolder, DataLoader with batches of 32 and 2 workers, float32, the default memory format, evaluation
after each epoch. Prints the accuracy of the last epoch as JSON.
"""

import argparse
import json

import torch
import torchvision
from torchvision import transforms as t

BATCH, WORKERS = 32, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--augment", choices=["none", "standard"], default="none")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.1)
    arguments = parser.parse_args()

    normalise = [t.ToTensor(), t.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    still = t.Compose([t.Resize(232), t.CenterCrop(224), *normalise])
    moving = still
    if arguments.augment == "standard":
        moving = t.Compose([t.RandomResizedCrop(224), t.RandomHorizontalFlip(), *normalise])
    train = torchvision.datasets.ImageFolder(f"{arguments.data}/train", moving)
    val = torchvision.datasets.ImageFolder(f"{arguments.data}/val", still)
    loader = torch.utils.data.DataLoader(train, BATCH, shuffle=True, num_workers=WORKERS)
    scored = torch.utils.data.DataLoader(val, BATCH, num_workers=WORKERS)
    model = torchvision.models.resnet50()
    model.load_state_dict(torch.load(arguments.weights))
    model.requires_grad_(False)
    body = torch.nn.Sequential(*list(model.children())[:-1], torch.nn.Flatten()).eval()
    head = torch.nn.Linear(2048, len(train.classes))
    optimizer = torch.optim.SGD(head.parameters(), arguments.lr, momentum=0.9)
    for _ in range(arguments.epochs):
        for images, labels in loader:
            with torch.no_grad():
                features = body(images)
            loss = torch.nn.functional.cross_entropy(head(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right = 0
        with torch.no_grad():
            for images, labels in scored:
                right += (head(body(images)).argmax(-1) == labels).sum().item()
    print(json.dumps({"accuracy": right / len(val)}))


if __name__ == "__main__":
    main()
