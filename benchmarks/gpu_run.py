"""What an H100 makes of us, in one command of at most 8 minutes; and the same at toy size on a CPU, as a rehearsal.

    python benchmarks/gpu_run.py run --out $OUT --limit 470 --caches .gpu/caches      # on the GPU
    python benchmarks/gpu_run.py run --toy --out OUT --limit 300                   # anywhere: every phase, at toy size
    python benchmarks/gpu_run.py prepare --caches .gpu/caches                         # without a GPU, under the stub of a CUDA runtime

Phases are in the order of their worth. Each writes its figures to OUT/figures.jsonl as soon as it has them, so that what
was measured is kept whatever happens later; one that fails says why and the next begins; one that cannot end in time is
not begun. `prepare` fills Inductor's caches for the very calls that `run` makes.
"""

import argparse
import contextlib
import copy
import gc
import json
import lzma
import os
import subprocess
import sys
import time
import traceback
import types
from pathlib import Path

START = time.monotonic()
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "12")
import torch
from torch import nn

try:
    import faiss  # noqa: F401
except ImportError:  # 19 MB that nothing here needs
    sys.modules["faiss"] = types.ModuleType("faiss")
from diffusers import AutoencoderKL, UNet2DConditionModel

from export.buckets import BucketedModule
from export.modules import ModuleSpec, TensorSpec, module_specs
from export.parity import random_inputs
from fashion_rag.bundle import Bundle
from fashion_rag.denoising.engine import Engine, Finished
from fashion_rag.denoising.noise_schedule import NoiseSchedule
from fashion_rag.denoising.runner import Edit, Inputs
from fashion_rag.denoising.scheduler import Limits
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.models.autoencoder import VAEDecoder, VAEEncoder
from fashion_rag.models.unet import ShallowUNet, SplitUNet, UNet, WholeUNet
from fashion_rag.pipeline import Conditioning, Person, denoise
from fashion_rag.request import Shortcuts, Solver

SD2 = dict(
    sample_size=64,
    in_channels=27,
    out_channels=4,
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    attention_head_dim=(5, 10, 20, 20),
    cross_attention_dim=1024,
    use_linear_projection=True,
)
VAE = dict(
    sample_size=512,
    latent_channels=4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    norm_num_groups=32,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
)
TOY = SD2 | dict(
    block_out_channels=(32, 64),
    attention_head_dim=(1, 2),
    cross_attention_dim=32,
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
TOY_VAE = VAE | dict(
    block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2
)
SAMPLER = NoiseSchedule(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    steps_offset=1,
    set_alpha_to_one=False,
)
TFLOP_ROW = 0.582


class Bench:
    def __init__(self, a):
        self.toy, self.limit = a.toy, a.limit
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.gpu = self.device.type == "cuda"
        self.out = Path(a.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.caches = Path(a.caches) if a.caches else None
        self.unet_config, self.vae_config = (TOY, TOY_VAE) if a.toy else (SD2, VAE)
        self.latent, self.image = ((16, 12), (32, 24)) if a.toy else ((64, 48), (512, 384))
        self.width = self.unet_config["cross_attention_dim"]
        self.rows = (1, 2, 4) if a.toy else (1, 2, 4, 8, 16, 32)
        self.half = torch.float16 if self.gpu else torch.float32  # halves are slow on a CPU
        self.table = []

    left = property(lambda self: self.limit - (time.monotonic() - START))

    def say(self, *words):
        print(f"[{time.monotonic() - START:6.1f}]", *words, flush=True)

    def figure(self, name, **values):
        with (self.out / "figures.jsonl").open("a") as file:
            file.write(json.dumps({"figure": name, "at_s": round(time.monotonic() - START, 1)} | values) + "\n")
        line = f"{name}: " + ", ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
        )
        self.table.append(line)
        self.say(line)

    @contextlib.contextmanager
    def phase(self, name, needs_s):
        """One phase; a failure is told and swallowed. `with ... as go: if go:` leaves it out where time is short."""
        go = self.left > needs_s or self.toy
        self.say("==", name, "" if go else f"left out: needs {needs_s} s, {self.left:.0f} s are left")
        try:
            yield go
        except Exception as error:
            self.figure(f"FAILED {name}", error=repr(error)[:300])
            traceback.print_exc(limit=-6)
        finally:
            if self.gpu:
                gc.collect()
                torch.cuda.empty_cache()

    def time(self, run, seconds=0.4):
        """Median milliseconds of a call, by the device's own clock; waits for nothing between calls of a batch."""
        if not self.gpu:
            run()
            start = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - start)
        run()
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        once = time.perf_counter() - start
        calls, found = max(1, int(seconds / 7 / max(once, 1e-5))), []
        for _ in range(7):
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            for _ in range(calls):
                run()
            b.record()
            b.synchronize()
            found.append(a.elapsed_time(b) / calls)
        return sorted(found)[3]

    # --- networks with random weights, made where they run: nothing of 3 GB travels
    def fresh(self, make, seed=0):
        with torch.device("meta"):
            module = make()
        module = module.to_empty(device=self.device).eval().requires_grad_(False)
        generator = torch.Generator(self.device).manual_seed(seed)
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                fan_in = layer.weight[0].numel()
                layer.weight.normal_(0, fan_in**-0.5, generator=generator)
                if layer.bias is not None:
                    layer.bias.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
            elif isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
                layer.weight.fill_(1)
                layer.bias.zero_()
            elif isinstance(layer, nn.Embedding):
                layer.weight.normal_(0, 0.02, generator=generator)
        for name, buffer in module.named_buffers():  # what to_empty left undefined
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1], device=self.device).expand_as(buffer))
        return module

    def specs(self):
        features = self.unet_config["block_out_channels"][1 if self.unet_config["layers_per_block"] == 1 else 0]
        text = TensorSpec((77, self.width))
        step = {
            "sample": TensorSpec((27, *self.latent)),
            "timestep": TensorSpec((), torch.int64),
            "prompt_embeds": text,
        }
        latents, image = TensorSpec((4, *self.latent)), TensorSpec((3, *self.image))
        return {
            s.name: s
            for s in (
                ModuleSpec("unet", step, {"both": TensorSpec((4 + features, *self.latent))}, None, ()),
                ModuleSpec(
                    "unet_shallow",
                    step | {"features": TensorSpec((features, *self.latent))},
                    {"noise": latents},
                    None,
                    (),
                ),
                ModuleSpec("vae_encoder", {"image": image}, {"moments": TensorSpec((8, *self.latent))}, None, ()),
                ModuleSpec("vae_decoder", {"latents": latents}, {"image": image}, None, ()),
            )
        }

    def unet(self, seed=0):
        return self.fresh(lambda: WholeUNet(UNet(UNet2DConditionModel(**self.unet_config))), seed)

    def inputs(self, spec, rows, seed=0):
        return [x.to(self.device) for x in random_inputs(spec, rows, torch.Generator().manual_seed(seed))]


def low(module, dtype, channels_last=True):
    module = copy.deepcopy(module).to(dtype)
    return module.to(memory_format=torch.channels_last) if channels_last else module


class Graphed(BucketedModule):
    """A callable at fixed sizes, captured; compiled="dynamic" compiles once for all sizes, "static" once a size, None not."""

    def __init__(self, module, spec, rows, device, compiled=None, **options):
        super().__init__(spec, rows, device)
        self.call = module
        if compiled:
            # On a CPU only a rehearsal, and C++ takes long to compile.
            backend = "inductor" if device.type == "cuda" else "eager"
            self.call = torch.compile(
                module, fullgraph=True, dynamic=False if compiled == "static" else None, backend=backend, **options
            )
        if compiled == "dynamic":
            for bucket in self.buckets.values():
                for tensor in bucket.inputs.values():
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)  # the strict one trips over guards like "fewer than 64"
        with torch._dynamo.config.patch(recompile_limit=64):
            self.warm_up(True)

    def enqueue(self, bucket):
        with torch.inference_mode(False), torch.no_grad():
            bucket.output.copy_(self.call(*bucket.inputs.values()))


# --- what is compiled, once for `prepare` and once for `run`: (name, network, spec name, rows, how)
def variants(bench):
    big = bench.rows[-1]
    return [
        ("unet dynamic", lambda: low(bench.unet(), bench.half), "unet", bench.rows[1:], "dynamic"),
        ("unet static 2", lambda: low(bench.unet(), bench.half), "unet", (2,), "static"),
        (f"unet static {big}", lambda: low(bench.unet(), bench.half), "unet", (big,), "static"),
        (
            "unet_shallow dynamic",
            lambda: low(ShallowUNet(bench.unet().unet), bench.half),
            "unet_shallow",
            bench.rows[1:],
            "dynamic",
        ),
        (
            "vae_decoder dynamic",
            lambda: low(bench.fresh(lambda: VAEDecoder(AutoencoderKL(**bench.vae_config))), bench.half),
            "vae_decoder",
            (2, 8) if not bench.toy else (2,),
            "dynamic",
        ),
        (
            "vae_encoder dynamic",
            lambda: low(bench.fresh(lambda: VAEEncoder(AutoencoderKL(**bench.vae_config))), bench.half),
            "vae_encoder",
            (2, 8) if not bench.toy else (2,),
            "dynamic",
        ),
    ]


def cache_file(bench, name):
    return bench.caches / f"{name.replace(' ', '-')}{'-toy' if bench.toy else ''}.xz"


def prepare(bench):
    """Compile for an H100 that is not there, and keep what Inductor made. Kernels are not run, so none is tuned."""
    import torch._inductor.runtime.triton_heuristics as heuristics

    class Stop(Exception):
        pass

    def stop(self, *args, **kwargs):
        raise Stop

    heuristics.CachingAutotuner.run = stop
    BucketedModule.warm_up = lambda self, graphs: self.enqueue(list(self.buckets.values())[-1])
    bench.caches.mkdir(parents=True, exist_ok=True)
    for name, make, spec, rows, how in variants(bench):
        if cache_file(bench, name).exists():
            continue
        torch._dynamo.reset()
        start = time.monotonic()
        with contextlib.suppress(Stop):
            Graphed(make(), bench.specs()[spec], rows, bench.device, how)
        data, _ = torch.compiler.save_cache_artifacts()
        torch.compiler._cache.CacheArtifactManager.clear() if hasattr(torch.compiler, "_cache") else None
        packed = lzma.compress(data, preset=6)
        cache_file(bench, name).write_bytes(packed)
        bench.say(
            f"{name}: {time.monotonic() - start:.0f} s, {len(data) / 1e6:.1f} MB, packed {len(packed) / 1e6:.2f} MB"
        )


def use_cache(bench, name):
    from torch._dynamo.utils import counters

    counters.clear()
    if bench.caches and cache_file(bench, name).exists():
        torch.compiler.load_cache_artifacts(lzma.decompress(cache_file(bench, name).read_bytes()))
    return lambda: (
        {k: v for k, v in counters["inductor"].items() if k.startswith("fxgraph")}
        | {k: v for k, v in counters["aot_autograd"].items() if "cache" in k}
    )


def compiled(bench, name):
    ((_, make, spec, rows, how),) = [v for v in variants(bench) if v[0] == name]
    torch._dynamo.reset()  # else a network of the same code and sizes is taken, however it was compiled
    hits, start = use_cache(bench, name), time.monotonic()
    module = Graphed(make(), bench.specs()[spec], rows, bench.device, how)
    bench.figure(f"compile {name}", seconds=time.monotonic() - start, **hits())
    return module


def relative(got, expected):
    return float((got.double().cpu() - expected.double().cpu()).norm() / expected.double().cpu().norm())


# --- phases
def facts(b):
    b.figure(
        "where",
        torch=torch.__version__,
        gpu=torch.cuda.get_device_name() if b.gpu else "none",
        cudnn=str(torch.backends.cudnn.version()),
        cores=os.cpu_count(),
    )
    n = 256 if not b.gpu or b.toy else 8192
    for dtype in (torch.bfloat16, torch.float16):
        x, y = torch.randn(n, n, device=b.device, dtype=dtype), torch.randn(n, n, device=b.device, dtype=dtype)
        b.figure(f"matrix product {n} {dtype}", tflops=2e-9 * n**3 / b.time(lambda: x @ y))
    if b.gpu:
        x = torch.empty(2**30 if not b.toy else 2**20, dtype=torch.int8, device=b.device)
        y = torch.empty_like(x)
        b.figure("copy", tb_s=2e-9 * x.numel() / b.time(lambda: y.copy_(x)))
        with contextlib.suppress(Exception):  # fp8, only to know what it could bring: the shapes of GEGLU at 32 rows
            for m, k, q in ((98304, 320, 2560), (24576, 640, 5120), (6144, 1280, 10240)):
                m = m if not b.toy else 64
                a8 = torch.randn(m, k, device=b.device).to(torch.float8_e4m3fn)
                w8 = torch.randn(q, k, device=b.device).to(torch.float8_e4m3fn)
                one = torch.ones((), device=b.device)
                a, w = a8.half(), w8.half()
                b.figure(
                    f"linear {m}x{k}x{q}",
                    fp16_ms=b.time(lambda: a @ w.t(), 0.1),
                    fp8_ms=b.time(lambda: torch._scaled_mm(a8, w8.t(), one, one, out_dtype=torch.float16), 0.1),
                )


def demo_parity(b):
    """Every network of the demo bundle against the CPU in float32; then the machinery around it."""
    bundle = Bundle.open(DEMO_BUNDLE)
    for name, spec in module_specs(bundle).items():
        inputs = random_inputs(spec, 3, torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = spec.load(bundle, torch.float32)(*inputs)
            found = {}
            for dtype in (torch.float32, torch.float16, torch.bfloat16) if b.gpu else (torch.float32,):
                got = low(spec.load(bundle, torch.float32).to(b.device), dtype)(*(x.to(b.device) for x in inputs))
                found[str(dtype)[6:]] = relative(got, expected)
        b.figure(f"parity {name}", **found)
    spec = module_specs(bundle)["unet"]
    module = spec.load(bundle, torch.float32).to(b.device)
    plain = low(module, b.half)
    captured = Graphed(plain, spec, (1, 2, 4), b.device)
    worst = 0.0
    with torch.no_grad():
        for rows in range(1, 10) if b.gpu else (1, 3, 5):
            inputs = [x.to(b.device) for x in random_inputs(spec, rows, torch.Generator().manual_seed(rows))]
            answer = captured(*inputs)
            kept = answer.clone()
            captured(*(x + 1 for x in inputs))
            assert torch.equal(answer, kept), "an answer was overwritten"
            worst = max(worst, relative(answer, plain(*inputs)))
    b.figure("captured against plain, 1 to 9 rows", rel=worst)
    both = [
        spec_.load(bundle, torch.float32).to(b.device)
        for spec_ in (module_specs(bundle)["unet"], module_specs(bundle)["unet_shallow"])
    ]
    for label, unet, tolerance in (
        ("float32", SplitUNet(*both), 1e-3),
        (
            "float16 captured",
            SplitUNet(
                captured, Graphed(low(both[1], b.half), module_specs(bundle)["unet_shallow"], (1, 2, 4), b.device)
            ),
            5e-2,
        ),
    ):
        b.figure(f"shared steps against alone, {label}", rel=shared_against_alone(b, unet, bundle), tolerance=tolerance)


@torch.inference_mode()
def shared_against_alone(b, unet, bundle):
    size, width, worst = bundle.latent_size, bundle.text_width, 0.0
    kinds = (
        Shortcuts(),
        Shortcuts(solver=Solver.UNIPC),
        Shortcuts(solver=Solver.DPMPP_2M),
        Shortcuts(cache_interval=3),
        Shortcuts(guidance_end=0.5),
    )
    engine, own = Engine(unet, Limits(max_rows=9, max_waiting=99)), {}
    for number, kind in enumerate(kinds):
        g = torch.Generator().manual_seed(number)
        x = [torch.randn(1, c, *size, generator=g) for c in (4, 4, 18)]
        own[str(number)] = Inputs(
            x[0],
            (torch.rand(1, 1, *size, generator=g) > 0.5).float(),
            x[1],
            x[2],
            torch.randn(1, 77, width, generator=g),
            torch.randn(1, 77, width, generator=g),
        ).to(b.device)
        engine.add(Edit(str(number), size, 6, 7.5, bundle.sampler, shortcuts=kind), own[str(number)])
    done = {}
    while len(engine):
        for event in engine.step():
            if isinstance(event, Finished):
                done[event.id] = event.latents
            elif hasattr(event, "error"):
                raise event.error
    for number, kind in enumerate(kinds):
        i = own[str(number)]
        *_, alone = denoise(
            unet,
            bundle.sampler,
            i.latents,
            Person(i.mask, i.masked_image_latents, i.pose_map),
            Conditioning(i.prompt_embeds, i.negative_prompt_embeds),
            6,
            7.5,
            kind,
        )
        worst = max(worst, relative(done[str(number)], alone))
    return worst


@torch.no_grad()
def full_eager(b):
    """Full size, not compiled: float32 on the CPU and the GPU, then half precision, layouts, attention, captured."""
    spec = b.specs()["unet"]
    exact = b.unet()
    inputs = b.inputs(spec, 2)
    torch.backends.cudnn.allow_tf32 = False
    expected = exact(*inputs)
    if b.gpu and not b.toy and b.left > 300:
        torch.set_num_threads(16)
        start = time.monotonic()
        b.figure(
            "full size, GPU float32 against CPU float32",
            rel=relative(expected, copy.deepcopy(exact).cpu()(*(x.cpu() for x in inputs))),
            cpu_s=time.monotonic() - start,
        )
    torch.backends.cudnn.allow_tf32 = True
    for dtype in (torch.float16, torch.bfloat16):
        b.figure(f"full size, {dtype} against float32", rel=relative(low(exact, dtype)(*inputs), expected))
    b.expected, b.parity_inputs = expected, inputs
    variants_ = {
        "float16 channels_last": (b.half, True),
        "float16 contiguous": (b.half, False),
        "bfloat16 channels_last": (torch.bfloat16 if b.gpu else b.half, True),
    }
    del exact
    for label, (dtype, last) in variants_.items():
        module = low(b.unet(), dtype, last)
        for rows in b.rows if label == "float16 channels_last" else (2, b.rows[-1]):
            x = b.inputs(spec, rows)
            b.figure(f"eager {label}, {rows} rows", ms=b.time(lambda: module(*x), 0.3))
        if b.left < 150 and not b.toy:
            break
        rows_ = b.rows if label == "float16 channels_last" else (2, b.rows[-1])
        for bench_ in (False, True) if label == "float16 channels_last" else (False,):
            torch.backends.cudnn.benchmark = bench_
            some = (2, b.rows[-1]) if bench_ else rows_  # it tries every algorithm of every shape
            captured = Graphed(module, spec, some, b.device)
            for rows in some:
                x = b.inputs(spec, rows)
                ms = b.time(lambda: captured(*x), 0.3)
                b.figure(
                    f"captured {label}{', cudnn.benchmark' if bench_ else ''}, {rows} rows",
                    ms=ms,
                    tflops=TFLOP_ROW * rows / ms * 1e3,
                )
            del captured
        torch.backends.cudnn.benchmark = False
    if b.gpu:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        for tokens, heads in ((3072, 5), (768, 10), (192, 20)):
            q = torch.randn(b.rows[-1], heads, tokens, 64, device=b.device, dtype=torch.float16)
            found = {}
            for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
                with contextlib.suppress(Exception), sdpa_kernel(backend):
                    found[backend.name.lower()] = b.time(
                        lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q), 0.1
                    )
            b.figure(f"attention {tokens} tokens, {heads} heads, {b.rows[-1]} rows, ms", **found)


@torch.no_grad()
def unet_compiled(b, name):
    module = compiled(b, name)
    spec = b.specs()["unet"]
    if getattr(b, "expected", None) is not None and 2 in module.buckets:
        b.figure(f"{name} against float32", rel=relative(module(*b.parity_inputs), b.expected))
    for rows in module.buckets:
        x = b.inputs(spec, rows)
        ms = b.time(lambda: module(*x))
        b.figure(f"{name}, {rows} rows", ms=ms, tflops=TFLOP_ROW * rows / ms * 1e3)
    if b.gpu:
        b.figure(f"{name}, memory", gb=torch.cuda.memory_reserved() / 1e9)
    return module


@torch.no_grad()
def engine(b, whole, shallow):
    """Edits a second of the engine as it is, and what it costs beside the UNet."""

    def blank(n):
        g = torch.Generator().manual_seed(n)
        c = lambda *s: torch.randn(1, *s, generator=g)
        return Inputs(
            c(4, *b.latent),
            torch.ones(1, 1, *b.latent),
            c(4, *b.latent),
            c(18, *b.latent),
            c(77, b.width),
            c(77, b.width),
        ).to(b.device)

    for label, kind in (
        ("ddim", Shortcuts()),
        ("unipc", Shortcuts(solver=Solver.UNIPC)),
        ("cache 2", Shortcuts(cache_interval=2)),
        ("cache 3", Shortcuts(cache_interval=3)),
        ("cache 5", Shortcuts(cache_interval=5)),
    ):
        for edits in [1, b.rows[-1] // 2] if label != "ddim" else sorted({1, 4, b.rows[-1] // 2}):
            e = Engine(SplitUNet(whole, shallow), Limits(max_rows=2 * edits, max_waiting=999))
            steps, number, done = (30, 0, 0) if not b.toy else (4, 0, 0)

            def top_up():
                nonlocal number
                while len(e) < edits:
                    e.add(
                        Edit(str(number), b.latent, steps - number % 3, 7.5, SAMPLER, shortcuts=kind), given[number % 4]
                    )
                    number += 1

            given = [blank(n) for n in range(4)]
            top_up()
            for _ in range(3):
                e.step()
            if b.gpu:
                torch.cuda.synchronize()
            start, calls = time.perf_counter(), 60 if not b.toy else 6
            for _ in range(calls):
                for event in e.step():
                    done += isinstance(event, Finished)
                    if hasattr(event, "error"):
                        raise event.error
                top_up()
            if b.gpu:
                torch.cuda.synchronize()
            ms = 1e3 * (time.perf_counter() - start) / calls
            x = b.inputs(b.specs()["unet"], 2 * edits)
            alone = b.time(lambda: whole(*x), 0.2)
            b.figure(f"engine {label}, {edits} edits", step_ms=ms, unet_ms=alone, edits_s_of_50=edits / (50 * ms / 1e3))


@torch.no_grad()
def other_networks(b):
    for name in ("vae_decoder", "vae_encoder"):
        module = compiled(b, f"{name} dynamic")
        spec = b.specs()[name]
        for rows in module.buckets:
            x = b.inputs(spec, rows)
            ms = b.time(lambda: module(*x))
            b.figure(
                f"{name} compiled, {rows} rows",
                ms=ms,
                tflops={"vae_decoder": 1.879, "vae_encoder": 0.831}[name] * rows / ms * 1e3,
            )
        del module
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

    from fashion_rag.models.prompt import TextEncoder

    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2) if b.toy else None
    text = CLIPTextConfig(
        **(
            small
            or dict(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=23,
                num_attention_heads=16,
                hidden_act="gelu",
            )
        ),
        vocab_size=49408,
    )
    vision = CLIPVisionConfig(
        **(
            small
            or dict(
                hidden_size=1280,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_attention_heads=16,
                hidden_act="gelu",
            )
        ),
        patch_size=14 if not b.toy else 16,
        image_size=224 if not b.toy else 32,
    )
    module = low(b.fresh(lambda: TextEncoder(CLIPTextModel(text))), b.half)
    spec = ModuleSpec(
        "text_encoder",
        {"token_embeds": TensorSpec((77, text.hidden_size))},
        {"prompt_embeds": TensorSpec((77, text.hidden_size))},
        None,
        (),
    )
    captured = Graphed(module, spec, (2, 8), b.device)
    for rows in (2, 8):
        x = b.inputs(spec, rows)
        b.figure(f"text encoder captured, {rows} rows", ms=b.time(lambda: captured(*x), 0.2))
    module = low(b.fresh(lambda: CLIPVisionModel(vision)), b.half)
    for rows in (1, 3, 8):
        x = torch.randn(rows, 3, vision.image_size, vision.image_size, device=b.device, dtype=b.half)
        b.figure(f"ViT-H eager, {rows} rows", ms=b.time(lambda: module(pixel_values=x).last_hidden_state, 0.2))


def training(b):
    """A step of the UNet as `fit` takes it, and with a fused optimiser and channels last."""
    for label, fused, last in (("as it is", None, False), ("fused, channels last", True, True)):
        net = b.unet().float().requires_grad_(True).train()
        if last:
            net = net.to(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=fused if b.gpu else None)
        rows = 8 if not b.toy else 2
        x = b.inputs(b.specs()["unet"], rows)

        def step():
            with torch.autocast(b.device.type, torch.bfloat16):
                loss = net(*x)[:, :4].float().square().mean()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            if norm.isfinite():
                optimiser.step()
            optimiser.zero_grad()

        for _ in range(2):
            step()
        ms = b.time(step, 1.0)
        b.figure(
            f"training step {label}, {rows} rows",
            ms=ms,
            tflops=3 * TFLOP_ROW * rows / ms * 1e3,
            gb=torch.cuda.max_memory_allocated() / 1e9 if b.gpu else 0.0,
        )
        del net, optimiser


def neighbour(b, whole):
    """The UNet's steps while another process decodes: what it costs that replicas share a GPU."""
    code = (
        "import sys,time,torch,types;sys.modules.setdefault('faiss',types.ModuleType('faiss'));sys.argv=['x'];sys.path.insert(0,%r);import gpu_run as g,argparse;"
        "b=g.Bench(argparse.Namespace(toy=%r,limit=60,out=%r,caches=None));m=g.low(b.fresh(lambda:g.VAEDecoder(g.AutoencoderKL(**b.vae_config))),b.half);"
        "x=b.inputs(b.specs()['vae_decoder'],2)\nwith torch.inference_mode():\n  t=time.time();n=0\n  while time.time()-t<%d:\n    m(*x);b.gpu and torch.cuda.synchronize();n+=1;n==3 and print('up',flush=True)\nprint(n,flush=True)"
    )
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code % (str(Path(__file__).parent), b.toy, str(b.out / "neighbour"), 20 if not b.toy else 4),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        child.stdout.readline()
        rows = b.rows[-1]
        x = b.inputs(b.specs()["unet"], rows)
        b.figure(
            f"UNet beside a process that decodes, {rows} rows", ms=b.time(lambda: whole(*x), 3.0 if not b.toy else 0.1)
        )
    finally:
        child.kill()


def run(b):
    torch.set_num_threads(min(16, os.cpu_count() or 1))
    with b.phase("facts", 20) as go:
        if go:
            facts(b)
    with b.phase("the demo bundle against the CPU", 40) as go:
        if go:
            demo_parity(b)
    whole = shallow = None
    with b.phase("full size, not compiled", 60) as go:
        if go:
            full_eager(b)
    with b.phase("full size, compiled once for all rows", 60) as go:
        if go:
            whole = unet_compiled(b, "unet dynamic")
    with b.phase("outermost layers", 30) as go:
        if go:
            shallow = compiled(b, "unet_shallow dynamic")
    with b.phase("engine", 30) as go:
        if go and whole and shallow:
            engine(b, whole, shallow)
    with b.phase("other networks", 40) as go:
        if go:
            other_networks(b)
    with b.phase("a neighbour", 40) as go:
        if go and whole:
            neighbour(b, whole)
    whole = shallow = None
    for name in ("unet static 2", f"unet static {b.rows[-1]}"):
        with b.phase(name, 70) as go:
            if go:
                unet_compiled(b, name)
    with b.phase("training", 40) as go:
        if go:
            training(b)
    print("\n".join(["", "=" * 30, *b.table]), flush=True)
    with b.phase("tuned", 150) as go:  # last: minutes
        if go and b.gpu:
            big = b.rows[-1]
            start = time.monotonic()
            torch._dynamo.reset()
            torch._inductor.config.max_autotune_gemm = True
            torch._inductor.config.coordinate_descent_tuning = False
            module = Graphed(low(b.unet(), torch.float16), b.specs()["unet"], (big,), b.device, "static")
            x = b.inputs(b.specs()["unet"], big)
            with torch.no_grad():
                b.figure(
                    f"max-autotune GEMM, {big} rows", ms=b.time(lambda: module(*x)), compile_s=time.monotonic() - start
                )


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("what", choices=["run", "prepare"])
    p.add_argument("--toy", action="store_true")
    p.add_argument("--out", default="gpu-out")
    p.add_argument("--limit", type=float, default=470)
    p.add_argument("--caches")
    a = p.parse_args()
    (run if a.what == "run" else prepare)(Bench(a))
