from fl_app.networks.space.memory import MemoryModel


def calibrate(job, space, device, precision):
    return MemoryModel(
        space,
        len(job.data.labels),
        job.data.patch_voxels,
        batch=job.training.batch_size,
        value_bytes=2 if precision != "fp32" else 4,
    )
