"""FLARE's documented client loop with no training in it: receive the model, send it back."""

import nvflare.client as flare


def main() -> None:
    """Answer every round."""
    flare.init()
    while flare.is_running():
        model = flare.receive()
        flare.send(flare.FLModel(params=model.params, meta={"NUM_STEPS_CURRENT_ROUND": 1}))


if __name__ == "__main__":
    main()
