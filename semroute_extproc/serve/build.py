"""Builds the objects that make decisions from a configuration, for serve, explain and check."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from semroute_extproc.config.models import Config
from semroute_extproc.config.source import Loaded
from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.bundle import DEFAULT, Bundle
from semroute_extproc.encoder.classifier import Classifier
from semroute_extproc.encoder.counting import TokenCounter
from semroute_extproc.encoder.cuda import open_each
from semroute_extproc.encoder.manifest import Device
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.queue import EncodeQueue
from semroute_extproc.encoder.remote import RemoteEncoder
from semroute_extproc.envoy.exchange import ExchangeSettings
from semroute_extproc.errors import EndpointError
from semroute_extproc.events import Emit, ignore
from semroute_extproc.io.cores import usable_cores
from semroute_extproc.io.files import read_file
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.policy import plan
from semroute_extproc.request import reasoning
from semroute_extproc.settings.base import POOLS_MAX, Problem
from semroute_extproc.state.sessions import tag
from semroute_extproc.strategies import registry
from semroute_extproc.strategies.judge import JudgeSettings
from semroute_extproc.strategies.judge_client import JudgeClient

TOKENIZER_BYTES_MAX = 256 * 1024 * 1024  # of a pool's tokenizer.json


def load_bundles(config: Config, graphs: bool = True) -> dict[str, Bundle]:
    """Language to checked bundle, the default under `DEFAULT`; raises BundleError.

    Without `graphs`, their graphs may be missing.
    """
    wanted, own = config.encoder, config.encoder.by_language
    default = wanted.bundle or bundle.default_bundle()
    paths = {**(bundle.language_bundles() if own is None else own), DEFAULT: default}
    devices: tuple[Device, ...] = (wanted.device, "cpu") if graphs else ()
    return bundle.load_each({key: Path(path) for key, path in paths.items()}, devices)


def open_models(config: Config) -> dict[str, OnnxModel] | dict[str, Bundle]:
    """Language to model, warmed up, or to bundle if only a server runs graphs.

    Raises BundleError or ConfigError.
    """
    bundles = load_bundles(config, config.encoder.is_local)
    return open_each(bundles, config.encoder.device) if config.encoder.is_local else bundles


def bundle_of(model: OnnxModel | Bundle) -> Bundle:
    """The bundle of what `open_models` opened."""
    return model if isinstance(model, Bundle) else model.bundle


def make_classifier(
    config: Config, models: Mapping[str, OnnxModel] | Mapping[str, Bundle], emit: Emit = ignore
) -> Classifier:
    """The classifier of the running loop: one thread on a GPU, else the cores divided by the workers.

    Raises ConfigError.
    """
    settings, cores = config.encoder, max(1, usable_cores() // config.server.workers)
    encoders: dict[Path, EncodeQueue | RemoteEncoder] = {}
    for model in models.values():
        if (found := bundle_of(model)).path in encoders:
            continue
        queue = None
        if not isinstance(model, Bundle):
            threads = settings.threads or (cores if model.device == "cpu" else 1)
            queue = EncodeQueue(model, threads, settings.queue_max, emit, settings.niceness)
            encoders[found.path] = queue
        if settings.remote is not None:
            encoders[found.path] = RemoteEncoder(found, settings.remote, queue, settings.queue_max, emit)
    by_language = {language: encoders[bundle_of(model).path] for language, model in models.items()}
    return Classifier(by_language.pop(DEFAULT), by_language, settings.cache_entries, emit)


def make_policies(
    loaded: Loaded, default: Bundle, profiles_of: registry.ProfilesOf = registry.once
) -> dict[str, plan.PolicyPlan]:
    """Compile every policy with its strategies' files; raises ConfigError with every problem's location."""
    config = loaded.config
    files, unreadable = registry.read_files(config.strategies, profiles_of)
    make_counter(loaded)
    strategies, unfit = registry.compile_all(config, default.manifest, files)
    policies, wrong = plan.build(config.pools, config.default_pool, config.policies, strategies)
    if problems := [*unreadable, *unfit, *wrong]:
        raise loaded.error(problems)
    return policies


def make_judges(loaded: Loaded, live: Mapping[str, JudgeClient] = {}) -> dict[str, JudgeClient]:
    """Strategy to judge, reused from `live` if its settings are unchanged; raises ConfigError."""
    judges: dict[str, JudgeClient] = {}
    families = reasoning.families(loaded.config.reasoning_families)
    for name, settings in loaded.config.strategies.items():
        if isinstance(settings, JudgeSettings):
            judge, wanted = live.get(name), (settings, families[settings.reasoning])
            try:
                same = judge is not None and (judge.settings, judge.family) == wanted
                judges[name] = judge if judge and same else JudgeClient(name, settings, families=families)
            except EndpointError as error:
                raise loaded.error([Problem(("strategies", name), str(error))]) from None
    return judges


def make_counter(loaded: Loaded) -> TokenCounter:
    """The tokenizers of the pools; raises ConfigError with every problem's location."""
    tokenizers: dict[str, Tokenizer] = {}
    problems: list[Problem] = []
    for name, pool in loaded.config.pools.items():
        if pool.tokenizer is not None:
            try:
                tokenizers[name] = _tokenizer(pool.tokenizer, pool.tokenizer.stat().st_mtime_ns)
            except Exception as error:  # the library raises Exception itself
                problem = getattr(error, "strerror", None) or error
                problems.append(Problem(("pools", name, "tokenizer"), f"cannot be read: {problem}"))
    if problems:
        raise loaded.error(problems)
    return TokenCounter(tokenizers)


@lru_cache(maxsize=POOLS_MAX)
def _tokenizer(path: Path, _changed: int) -> Tokenizer:
    """A large tokenizer takes a second to read and 100 MB, so that pools and reloads share it."""
    tokenizer = Tokenizer.from_buffer(read_file(path, TOKENIZER_BYTES_MAX))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def exchange_settings(pipeline: Pipeline) -> ExchangeSettings:
    """What the exchange with Envoy needs to know of a pipeline's configuration."""
    config = pipeline.config
    cluster = config.pools[config.default_pool].cluster
    session = config.controllers.session
    issued = config.pools if session is not None and session.response_ids else {}
    stores = {tag(name): (name, pool.cluster) for name, pool in issued.items()}
    refuses = config.unreadable == "refuse" or any(pool.policy for pool in config.pools.values())
    return ExchangeSettings(config.default_pool, cluster, config.server, pipeline.names, stores, refuses)
