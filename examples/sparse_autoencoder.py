"""Train a small TopK sparse autoencoder on a run: ``python -m examples.sparse_autoencoder RUN``."""

import sys

import torch

import ldmprobe as lp


def main(url: str, features: int = 256, active: int = 8, epochs: int = 20) -> float:
    """Return the share of the test tokens' variance that the autoencoder does not explain."""
    run = lp.open_run(url)
    torch.manual_seed(0)
    stream = run.tokens(run.layers[0], batch=256)
    encoder = torch.nn.Linear(stream.channels, features)
    decoder = torch.nn.Linear(features, stream.channels)

    def squared_error(tokens: torch.Tensor) -> torch.Tensor:
        top = encoder(tokens).relu().topk(active)
        codes = torch.zeros(len(tokens), features).scatter(1, top.indices, top.values)
        return (decoder(codes) - tokens).square().mean()

    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    for epoch in range(epochs):
        stream.set_epoch(epoch)
        for tokens in torch.utils.data.DataLoader(stream, batch_size=None):
            optimizer.zero_grad()
            squared_error(tokens).backward()
            optimizer.step()
    test = torch.cat(list(run.tokens(run.layers[0], split="test")))
    unexplained = float(squared_error(test) / test.var(0).mean())
    print(f"{active} of {features} features leave {unexplained:.0%} of the variance unexplained")
    return unexplained


if __name__ == "__main__":
    main(*sys.argv[1:2] or sys.exit("usage: python -m examples.sparse_autoencoder RUN"))
