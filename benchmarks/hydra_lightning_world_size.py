"""A sweep over device counts with plain Hydra and Lightning, which trains on the wrong data; see docs/LOG.md.

python benchmarks/hydra_lightning_world_size.py -m +devices=1,2     the second job trains on half of the data, exits 0
python benchmarks/hydra_lightning_world_size.py -m +devices=2,1     crashes
"""

import hydra
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset


class M(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.l = torch.nn.Linear(1, 1)
        self.seen = set()

    def training_step(self, batch, i):
        self.seen |= {int(x) for x in batch[0][:, 0]}
        return self.l(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-9)


@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    t = pl.Trainer(
        accelerator="cpu",
        devices=int(cfg.devices),
        strategy="ddp",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    m = M()
    t.fit(m, DataLoader(TensorDataset(torch.arange(64.0).unsqueeze(1)), batch_size=4))
    real = dist.get_world_size() if dist.is_initialized() else 1
    places = f"trainer.world_size={t.world_size} real={real} rank={t.global_rank}"
    print(f"RESULT devices={cfg.devices} {places} seen={len(m.seen)} of 64", flush=True)


main()
