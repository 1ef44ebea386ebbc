"""MONAI's fast training tutorial (acceleration/fast_training_tutorial) for the spleen, with its settings.

    python benchmarks/peers/monai_fast_training.py PLAN

Its transforms, all cases cached on the GPU, batches of 4 cases with 4 patches each, the U-Net with batch
normalisation, DiceCE, Novograd with 2e-3, AMP, a validation after each epoch by windows of 160 voxels. What differs:
it ends when the spleen alone has the wanted Dice, the Dice of the background is told apart (the tutorial takes the mean
of both), and volumes are padded to the patch. On a CPU, where it is only tried out, AMP is bfloat16.

PLAN is a JSON file: ``training`` and ``validation`` files, ``patch``, ``window``, ``device``, ``dice`` to reach, and
``limit`` in seconds. After each validation the outcome so far is printed as JSON (`benchmarks.single_site.Reached`).
"""

import json
import sys
import time
from pathlib import Path

import torch
from monai.data import CacheDataset, ThreadDataLoader, decollate_batch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.layers import Norm
from monai.networks.nets import UNet
from monai.optimizers import Novograd
from monai.transforms import (
    AsDiscrete,
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    EnsureTyped,
    FgBgToIndicesd,
    LoadImaged,
    Orientationd,
    RandCropByPosNegLabeld,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
    ToDeviced,
)

BOTH = ["image", "label"]
EPOCHS = 300


def transforms(plan: dict, training: bool) -> Compose:
    """The tutorial's transforms."""
    steps = [
        LoadImaged(BOTH),
        EnsureChannelFirstd(BOTH),
        Spacingd(BOTH, pixdim=(1.5, 1.5, 2.0), mode=("bilinear", "nearest")),
        Orientationd(BOTH, axcodes="RAS", labels=None),
        ScaleIntensityRanged("image", a_min=-57, a_max=164, b_min=0.0, b_max=1.0, clip=True),
        CropForegroundd(BOTH, source_key="image", allow_smaller=True),
        SpatialPadd(BOTH, plan["patch"]),
    ]
    if training:
        steps.append(FgBgToIndicesd("label", fg_postfix="_fg", bg_postfix="_bg", image_key="image"))
    steps += [EnsureTyped(BOTH), ToDeviced(BOTH, device=plan["device"])]
    if training:
        crop = RandCropByPosNegLabeld(
            BOTH,
            "label",
            plan["patch"],
            pos=1,
            neg=1,
            num_samples=4,
            fg_indices_key="label_fg",
            bg_indices_key="label_bg",
        )
        steps.append(crop)
    return Compose(steps)


def main(plan: dict) -> None:
    """Cache, then train and validate until the wanted Dice or the limit."""
    device = torch.device(plan["device"])
    on_gpu = device.type == "cuda"
    started = time.perf_counter()
    train_ds = CacheDataset(plan["training"], transforms(plan, True), cache_rate=1.0, num_workers=8, progress=False)
    val_ds = CacheDataset(plan["validation"], transforms(plan, False), cache_rate=1.0, num_workers=5, progress=False)
    caching = time.perf_counter() - started
    train_loader = ThreadDataLoader(train_ds, num_workers=0, batch_size=4, shuffle=True)
    val_loader = ThreadDataLoader(val_ds, num_workers=0, batch_size=1)
    started = time.perf_counter()
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, batch=True)
    model = UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=2,
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
        norm=Norm.BATCH,
    ).to(device)
    post_pred, post_label = AsDiscrete(argmax=True, to_onehot=2), AsDiscrete(to_onehot=2)
    dice_metric = DiceMetric(include_background=True, reduction="mean_batch")
    optimizer = Novograd(model.parameters(), 2e-4 * 10)
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)
    mixed = lambda: torch.autocast(device.type, torch.float16 if on_gpu else torch.bfloat16)  # noqa: E731

    steps, in_steps, found = 0, 0.0, []
    for _ in range(EPOCHS):
        model.train()
        epoch_started = time.perf_counter()
        for batch in train_loader:
            inputs, labels = batch["image"].to(device), batch["label"].to(device)
            optimizer.zero_grad()
            with mixed():
                outputs = model(inputs)
                loss = loss_function(outputs, labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            loss.item()  # the tutorial adds it up and prints it
            steps += 1
        in_steps += time.perf_counter() - epoch_started
        model.eval()
        with torch.no_grad():
            for batch in val_loader:
                inputs, labels = batch["image"].to(device), batch["label"].to(device)
                with mixed():
                    outputs = sliding_window_inference(inputs, plan["window"], 4, model)
                dice_metric(
                    y_pred=[post_pred(each) for each in decollate_batch(outputs)],
                    y=[post_label(each) for each in decollate_batch(labels)],
                )
        background, spleen = dice_metric.aggregate().tolist()
        dice_metric.reset()
        found.append((time.perf_counter() - started, background, spleen))
        outcome = {"caching_seconds": caching, "training_seconds": in_steps, "steps": steps, "dice": found}
        print(json.dumps(outcome), flush=True)
        if spleen >= plan["dice"] or found[-1][0] > plan["limit"]:
            break


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
