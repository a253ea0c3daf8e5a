//! Learns what no rule says: `tests/labelled/dev` → `src/lexicon/learned.tsv`.
//!
//! `cargo run --release --example learn` writes the file and prints how well what it learned on four fifths of the items did
//! on the fifth that it had not seen; the same items give the same file, to the byte. `tests/labelled/heldout` is not read.
//!
//! The model (`domain::classify::learned`) is linear, so learning is a linear support vector machine with squared hinge loss, by dual
//! coordinate descent (Hsieh et al., "A Dual Coordinate Descent Method for Large-scale Linear SVM", ICML 2008).

use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::path::{Path, PathBuf};
use stopgate::domain::classify::{Class, Lexicon, Message, classify, features};
use stopgate::wire::lexicon::{EMBEDDED, LEARNED, load};

/// Passes over the items; the weights move little after thirty.
const ROUNDS: usize = 60;
/// A feature seen in fewer items is left out.
const SEEN: usize = 2;
/// A smaller weight, in thousandths, is left out: a quarter of them, and the decisions stay.
const LEAST: i32 = 60;
const FOLDS: usize = 5;

/// The thresholds, in thousandths: see what they cost in the table that is printed.
const OPT_OUT: i32 = 200;
const REVIEW: i32 = 100;
/// How far below a text of which nothing is known a rule is doubted.
const DOUBT: i32 = 20;

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    text: Option<String>,
    expect: String,
    kind: String,
    language: String,
}

/// An item as numbers.
struct Example {
    is_wish: bool,
    kind: Kind,
    language: String,
    /// What the rules say of it.
    said: Class,
    features: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ambiguous,
    Chat,
    Other,
}

struct Model {
    weights: HashMap<String, f64>,
    constant: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules = load(EMBEDDED, None)?;
    let examples = examples(&root.join("tests/labelled/dev"), &rules)?;
    println!("{} items, {} of them wishes to stop", examples.len(), examples.iter().filter(|example| example.is_wish).count());
    let scores = scores_of_unseen(&examples);
    print_thresholds(&examples, &scores);
    print_doubts(&examples, &scores);
    print_languages(&examples, &scores);
    let model = learn(&examples.iter().collect::<Vec<_>>());
    let file = written(&model, &examples);
    std::fs::write(root.join("src/lexicon").join(LEARNED), file)?;
    Ok(())
}

/// Items that are sentences: keywords, buttons and calls for help are for rules alone.
fn examples(directory: &Path, rules: &Lexicon) -> Result<Vec<Example>, Box<dyn Error>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    let mut examples = Vec::new();
    for path in &paths {
        for line in std::fs::read_to_string(path)?.lines() {
            let item: Item = serde_json::from_str(line).map_err(|error| format!("{}: {error}", path.display()))?;
            let Some(text) = item.text.filter(|_| matches!(item.kind.as_str(), "freeform" | "hard_negative" | "chat" | "ambiguous" | "opt_in"))
            else {
                continue;
            };
            let features = features(rules, &text);
            if !features.is_empty() {
                let said = classify(rules, &Message { text: Some(&text), ..Message::default() }).class;
                let kind = match item.kind.as_str() {
                    "ambiguous" => Kind::Ambiguous,
                    "chat" => Kind::Chat,
                    _ => Kind::Other,
                };
                examples.push(Example { is_wish: item.expect == "OPT_OUT", kind, language: item.language, said, features });
            }
        }
    }
    Ok(examples)
}

/// SplitMix64: a run is the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}

fn learn(examples: &[&Example]) -> Model {
    let mut seen: HashMap<&str, (usize, usize)> = HashMap::new();
    for (number, example) in examples.iter().enumerate() {
        for feature in &example.features {
            let (items, last) = seen.entry(feature).or_insert((0, usize::MAX));
            *items += usize::from(*last != number);
            *last = number;
        }
    }
    let mut names: Vec<&str> = seen.iter().filter(|(_, (items, _))| *items >= SEEN).map(|(name, _)| *name).collect();
    names.sort_unstable();
    let places: HashMap<&str, usize> = names.iter().enumerate().map(|(place, name)| (*name, place)).collect();
    let constant = names.len();
    let rows: Vec<Vec<(usize, f64)>> = examples.iter().map(|example| row(example, &places, constant)).collect();
    let mut weights = vec![0.0; names.len() + 1];
    let mut alphas = vec![0.0; rows.len()];
    let mut order: Vec<usize> = (0..rows.len()).collect();
    let mut chance = Chance(7);
    for _ in 0..ROUNDS {
        chance.shuffle(&mut order);
        for &at in &order {
            let (row, sign, softness) = (&rows[at], if examples[at].is_wish { 1.0 } else { -1.0 }, 0.5 / cost(examples[at]));
            let score: f64 = row.iter().map(|(place, value)| weights[*place] * value).sum();
            let length: f64 = row.iter().map(|(_, value)| value * value).sum();
            let slope = sign * score - 1.0 + softness * alphas[at];
            let alpha = f64::max(alphas[at] - slope / (length + softness), 0.0);
            let step = (alpha - alphas[at]) * sign;
            alphas[at] = alpha;
            row.iter().for_each(|(place, value)| weights[*place] += step * value);
        }
    }
    let constant = weights[constant];
    Model { weights: names.into_iter().map(str::to_owned).zip(weights).collect(), constant }
}

/// What an error on an item costs: to silence a business that somebody wants to hear from is worse than to miss a wish that a
/// rule may find, and ordinary talk is far more of what arrives than of what is labelled.
fn cost(example: &Example) -> f64 {
    match (example.is_wish, example.kind) {
        (true, _) => 0.5,
        // It should lie between the two.
        (false, Kind::Ambiguous) => 1.0,
        (false, Kind::Other) => 1.0,
        (false, Kind::Chat) => 3.0,
    }
}

/// Features as places and how much of them there is.
fn row(example: &Example, places: &HashMap<&str, usize>, constant: usize) -> Vec<(usize, f64)> {
    let each = 1.0 / (example.features.len() as f64).sqrt();
    let mut row: BTreeMap<usize, f64> = [(constant, 1.0)].into();
    for place in example.features.iter().filter_map(|feature| places.get(feature.as_str())) {
        *row.entry(*place).or_insert(0.0) += each;
    }
    row.into_iter().collect()
}

impl Model {
    fn score(&self, example: &Example) -> f64 {
        let sum: f64 = example.features.iter().filter_map(|feature| self.weights.get(feature)).sum();
        sum / (example.features.len() as f64).sqrt() + self.constant
    }
}

/// The score of each item by a model that has not seen it, in thousandths.
fn scores_of_unseen(examples: &[Example]) -> Vec<i32> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    Chance(11).shuffle(&mut order);
    let mut scores = vec![0; examples.len()];
    for fold in 0..FOLDS {
        let (unseen, seen): (Vec<_>, Vec<_>) = order.iter().enumerate().partition(|(place, _)| place % FOLDS == fold);
        let model = learn(&seen.iter().map(|(_, at)| &examples[**at]).collect::<Vec<_>>());
        for (_, at) in unseen {
            scores[*at] = (model.score(&examples[*at]) * 1000.0) as i32;
        }
    }
    scores
}

/// How many of the items of a kind are opt-outs: to the rules, and with what the words weigh.
fn share<'e>(examples: impl Iterator<Item = (&'e Example, &'e i32)>, threshold: i32) -> (usize, f64, f64) {
    let (mut all, mut ruled, mut both) = (0, 0, 0);
    for (example, score) in examples {
        let by_rule = example.said == Class::OptOut;
        all += 1;
        ruled += usize::from(by_rule);
        both += usize::from(by_rule || *score >= threshold);
    }
    let share = |some: usize| 100.0 * some as f64 / f64::max(all as f64, 1.0);
    (all, share(ruled), share(both))
}

fn print_thresholds(examples: &[Example], scores: &[i32]) {
    println!("\n{:>9}{:>26}{:>26}{:>26}", "threshold", "English wishes %", "other wishes %", "no wishes %");
    for threshold in (-300..=900).step_by(100) {
        let of = |wish: bool, english: Option<bool>| {
            let is_of = |example: &Example| example.is_wish == wish && example.kind != Kind::Ambiguous;
            let chosen = |example: &Example| is_of(example) && english.is_none_or(|english| english == (example.language == "en"));
            let (_, ruled, both) = share(examples.iter().zip(scores).filter(|(example, _)| chosen(example)), threshold);
            format!("{ruled:.1} -> {both:.1}")
        };
        println!("{threshold:>9}{:>26}{:>26}{:>26}", of(true, Some(true)), of(true, Some(false)), of(false, None));
    }
}

/// Of what the rules take for opt-outs, how many would be doubted.
fn print_doubts(examples: &[Example], scores: &[i32]) {
    println!("\n{:>9}{:>26}{:>26}", "doubt at", "wishes, % of the rules'", "others, % of the rules'");
    for threshold in (-1000..=0).step_by(100) {
        let of = |wish: bool| {
            let ruled = examples.iter().zip(scores).filter(|(example, _)| example.said == Class::OptOut && example.is_wish == wish);
            let (all, doubted) = ruled.fold((0, 0), |(all, doubted), (_, score)| (all + 1, doubted + usize::from(*score <= threshold)));
            format!("{doubted} of {all}: {:.1}", 100.0 * f64::from(doubted as u32) / f64::from(all))
        };
        println!("{threshold:>9}{:>26}{:>26}", of(true), of(false));
    }
}

fn print_languages(examples: &[Example], scores: &[i32]) {
    println!("\n{:<9}{:>22}{:>22}{:>22}", "language", "wishes", "hard", "chat");
    let mut languages: Vec<&str> = examples.iter().map(|example| example.language.as_str()).collect();
    languages.sort_unstable();
    languages.dedup();
    for language in languages {
        let of = |wish: bool, kind: Kind| {
            let chosen = |example: &Example| example.language == language && example.is_wish == wish && example.kind == kind;
            let (all, ruled, both) = share(examples.iter().zip(scores).filter(|(example, _)| chosen(example)), OPT_OUT);
            format!("{all}: {ruled:.1} -> {both:.1}")
        };
        println!("{language:<9}{:>22}{:>22}{:>22}", of(true, Kind::Other), of(false, Kind::Other), of(false, Kind::Chat));
    }
}

/// The file: the language of a feature is the one whose items have it most often.
fn written(model: &Model, examples: &[Example]) -> String {
    let mut seen: HashMap<&str, BTreeMap<&str, usize>> = HashMap::new();
    for example in examples.iter().filter(|example| example.language != "mixed") {
        for feature in &example.features {
            *seen.entry(feature).or_default().entry(&example.language).or_insert(0) += 1;
        }
    }
    let most = |feature: &str| {
        let languages =
            seen.get(feature).and_then(|languages| languages.iter().max_by_key(|(language, items)| (**items, std::cmp::Reverse(**language))));
        languages.map_or("en", |(language, _)| *language)
    };
    let thousandths = |weight: f64| (weight * 1000.0).round() as i32;
    let mut lines: Vec<(&str, &str, i32)> = model
        .weights
        .iter()
        .map(|(feature, weight)| (most(feature), feature.as_str(), thousandths(*weight)))
        .filter(|line| line.2.abs() >= LEAST)
        .collect();
    lines.sort_by_key(|(language, feature, weight)| (*language, std::cmp::Reverse(weight.abs()), *feature));
    let constant = thousandths(model.constant);
    let head = [
        "# Written by examples/learn.rs from tests/labelled/dev: what words weigh where no rule has an answer.".to_owned(),
        "# FEATURE, thousandths, language. A feature is one to three words in a row, . being a break, or * and four letters of a word."
            .to_owned(),
        format!("constant\t{constant}\nopt_out\t{OPT_OUT}\nreview\t{REVIEW}\ndoubt\t{}", constant - DOUBT),
    ];
    let lines = lines.into_iter().map(|(language, feature, weight)| format!("{feature}\t{weight}\t{language}"));
    head.into_iter().chain(lines).map(|line| line + "\n").collect()
}
