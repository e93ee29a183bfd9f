"""What users of torch's quantize_dynamic do. test_dynamic.py runs it twice, with the one import changed."""

import copy
import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 64)
        self.lstm = nn.LSTM(64, 128, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(256, 128, batch_first=True)
        self.cell = nn.LSTMCell(128, 128)
        self.head = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 128))

    def forward(self, words):
        x, _ = self.lstm(self.words(words))
        x, h = self.gru(x)
        h, _ = self.cell(h[0])
        return self.head(x + h[:, None])


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


torch.manual_seed(0)
model = Net().eval()
words = torch.randint(50, (3, 17))
with torch.no_grad():
    exact = model(words)
    quantized = quantize_dynamic(model, {nn.LSTM, nn.GRU, nn.LSTMCell, nn.Linear}, dtype=torch.qint8)
    y = quantized(words)
    again = quantize_dynamic(Net(), {nn.LSTM, nn.GRU, nn.LSTMCell, nn.Linear})
    again.load_state_dict(saved(quantized.state_dict()))
    default = quantize_dynamic(Net().train())
    default.load_state_dict(quantized.state_dict())
    heads = quantize_dynamic(model, {"head"})
    changed = copy.deepcopy(model)
    quantize_dynamic(changed, {nn.LSTM}, inplace=True)
    with ThreadPoolExecutor(4) as pool:
        threads = [torch.equal(other, y) for other in pool.map(quantized, [words] * 16)]
    same = {
        "original": torch.equal(model(words), exact),
        "state_dict": torch.equal(again(words), y),
        "default": torch.equal(default(words), y) and not default.training,
        "deepcopy": torch.equal(copy.deepcopy(quantized)(words), y),
        "pickle": torch.equal(pickle.loads(pickle.dumps(quantized))(words), y),
        "save": torch.equal(saved(quantized)(words), y),
        "threads": all(threads),
        "shapes": all(quantized(words[:n, :k]).shape == (n, k, 128) for n, k in ((1, 1), (2, 5))),
    }
    outputs = {"all": y, "head": heads(words), "lstm": changed(words)}
replaced = {
    key: sorted(name for name, module in model.named_modules() if type(module) is not type(made.get_submodule(name)))
    for key, made in (("all", quantized), ("head", heads), ("lstm", changed))
}
errors = {name: float((found - exact).abs().max()) for name, found in outputs.items()}
print(json.dumps({"same": same, "replaced": replaced, "errors": errors}))
