"""How the experiments of translation are tested: losses, BLEU, and pictures."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from experiments import translating
from experiments.translating import Translator
from jaxhist import devices, evaluate, plots, tell
from jaxhist.algorithm import State
from jaxhist.data import text
from jaxhist.train import Run

MEASURES = {
    "exact": evaluate.exact,
    "BLEU": lambda translations, references: evaluate.bleu(translations, references).score,
}


def tests(translator: Translator, run: Run, beams: int) -> tuple[Callable, Callable]:
    """`evaluate` and `test` of an experiment: the perplexity of a token, and how many of them are
    guessed; and how good translations are, greedy ones of the validation data, and those of a beam
    search of the test data, which also gives the pictures."""
    corpus, panels = translator.corpus, translator.panels
    rows = corpus.batch["source"].shape[0]
    mean = evaluate.means(
        translating.measure(translator), devices.mesh(run.devices, run.mesh), rows
    )
    greedy = translating.translate_with(translator, run, 1)
    searched = translating.translate_with(translator, run, beams)

    def scores(state, split, translations):
        means = mean(state, corpus.rows(split))
        return {
            "perplexity": float(np.exp(means["loss"] / means["tokens"])),
            "accuracy": means["right"] / means["tokens"],
            corpus.score: MEASURES[corpus.score](translations, corpus.pairs(split).target),
        }

    def validate(state: State):
        return scores(state, "validation", greedy(state, corpus.pairs("validation").source).texts)

    def test(state: State):
        sources, references = corpus.pairs("test")
        translations = searched(state, sources).texts
        if corpus.score == "BLEU":
            tell(f"BLEU      {evaluate.bleu(translations, references).signature}, {beams} beams")
        by_length = evaluate.by_length(MEASURES[corpus.score], sources, translations, references)
        pictures = {"lengths": plots.bars(by_length, corpus.score, "words of the source")}
        if panels is not None:
            pictures["attention"] = picture(translator, state, sources, translations)
        lengths = {f"lengths {words}": value for words, value in by_length.items()}
        return scores(state, "test", translations) | lengths | pictures

    return validate, test


def picture(
    translator: Translator, state: State, sources: Sequence[str], translations: Sequence[str]
) -> np.ndarray:
    """What is looked at while the first sentence of a middling length is translated."""
    lengths = [len(source.split()) for source in sources]
    chosen = lengths.index(int(np.quantile(lengths, 0.5, method="lower")))
    one, other = translator.corpus.vocabularies()
    source = text.padded(translator.corpus.encode([sources[chosen]]))
    target = text.padded(text.encode(other, [translations[chosen]]))
    batch = {"source": source, "target": target}
    panels = jax.device_get(jax.jit(translator.panels)(translator.params(state), batch))
    return plots.attention(panels, text.pieces(one, source[0]), text.pieces(other, target[0]))
