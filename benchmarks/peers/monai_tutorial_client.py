"""MONAI's spleen_segmentation_3d tutorial as a client of FLARE's client API, one epoch a round.

Its transforms, CacheDataset, batches of 2 cases with 4 patches each, Dice loss, Adam with 1e-4, and validation by
sliding windows. What differs from the tutorial: spacing, patch and network are those of the job compared with; volumes
are padded to the patch, since that grid is coarser; the data loader has no worker processes, since the sites share
two cores and the cache holds everything. With ``amp`` forward passes run in bfloat16 under torch.autocast.
"""

import json
import sys
from pathlib import Path

import monai.networks.nets
import nvflare.client as flare
import torch
from monai.data import CacheDataset, DataLoader, decollate_batch
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from monai.metrics import DiceMetric
from monai.transforms import (
    AsDiscrete,
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    RandCropByPosNegLabeld,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
)

BOTH = ["image", "label"]


def transforms(plan: dict, training: bool) -> Compose:
    """The tutorial's transforms; random patches for training only."""
    steps = [
        LoadImaged(BOTH),
        EnsureChannelFirstd(BOTH),
        ScaleIntensityRanged("image", a_min=-57, a_max=164, b_min=0.0, b_max=1.0, clip=True),
        CropForegroundd(BOTH, source_key="image", allow_smaller=True),
        Orientationd(BOTH, axcodes="RAS", labels=None),
        Spacingd(BOTH, pixdim=plan["spacing_mm"], mode=("bilinear", "nearest")),
        SpatialPadd(BOTH, plan["patch"]),
    ]
    crop = RandCropByPosNegLabeld(
        BOTH, "label", plan["patch"], pos=1, neg=1, num_samples=4, image_key="image", image_threshold=0
    )
    return Compose([*steps, crop] if training else steps)


def main(plan: dict) -> None:
    """Answer every round: validate the model as received, train it for an epoch, send it back."""
    flare.init()
    site = flare.get_site_name()
    files = plan["sites"][site]
    training = CacheDataset(files["training"], transforms(plan, True), cache_rate=1.0, progress=False)
    validation = CacheDataset(files["validation"], transforms(plan, False), cache_rate=1.0, progress=False)
    train_loader = DataLoader(training, batch_size=2, shuffle=True)
    val_loader = DataLoader(validation, batch_size=1)
    network = monai.networks.nets.UNet(**plan["network"])
    loss_function = DiceLoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    to_classes, to_onehot = AsDiscrete(argmax=True, to_onehot=2), AsDiscrete(to_onehot=2)
    mixed = lambda: torch.autocast("cpu", torch.bfloat16, enabled=plan["amp"])  # noqa: E731

    while flare.is_running():
        received = flare.receive()
        network.load_state_dict({name: torch.as_tensor(value) for name, value in received.params.items()})
        network.eval()
        metric = DiceMetric(include_background=False, reduction="mean")
        with torch.no_grad(), mixed():
            for batch in val_loader:
                outputs = sliding_window_inference(batch["image"], plan["patch"], 4, network)
                metric(
                    y_pred=[to_classes(each) for each in decollate_batch(outputs.float())],
                    y=[to_onehot(each) for each in decollate_batch(batch["label"])],
                )
        dice = metric.aggregate().item()
        with Path(plan["scores"]).open("a") as stream:
            score = {"site": site, "round": received.current_round, "dice": dice, "cases": len(validation)}
            stream.write(json.dumps(score) + "\n")
        network.train()
        steps = 0
        for batch in train_loader:
            optimizer.zero_grad()
            with mixed():
                outputs = network(batch["image"])
            loss = loss_function(outputs.float(), batch["label"])
            loss.backward()
            optimizer.step()
            steps += 1
        flare.send(
            flare.FLModel(
                params=network.state_dict(), metrics={"accuracy": dice}, meta={"NUM_STEPS_CURRENT_ROUND": steps}
            )
        )


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
