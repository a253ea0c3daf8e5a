//! Messages a second on one core, short and long, plain and adversarial.
//!
//! Throughput is in bytes, so that the adversarial texts can be compared with prose: none may cost more a byte.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use stopgate::domain::classify::{Lexicon, Message, classify};
use stopgate::wire::lexicon::builtin;

/// What customers send, most of it not about messages at all.
const SHORT: [&str; 16] = [
    "STOP",
    "Stop please",
    "thanks!",
    "ok",
    "Hi, is my order on its way?",
    "what time do you open tomorrow",
    "please stop sending me these messages",
    "Parar, por favor",
    "quiero cambiar la talla de mi pedido",
    "退订",
    "وقفوا الرسائل لو سمحتم",
    "Can I pay by card?",
    "see you at 5",
    "where is the bus stop near your shop?",
    "Danke, bis morgen",
    "yes",
];

fn classify_all(lexicon: &Lexicon, texts: &[&str]) {
    for text in texts {
        black_box(classify(lexicon, &Message { text: Some(black_box(text)), button: None, language: None }));
    }
}

fn short(criterion: &mut Criterion) {
    let lexicon = builtin();
    let mut group = criterion.benchmark_group("short");
    group.throughput(Throughput::Elements(SHORT.len() as u64));
    group.bench_function("mixed", |bencher| bencher.iter(|| classify_all(&lexicon, &SHORT)));
    for (name, text) in [("keyword", "STOP"), ("chat", "see you at five then"), ("sentence", "please stop sending me these messages")] {
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |bencher| bencher.iter(|| classify_all(&lexicon, &[text])));
    }
    group.finish();
}

fn long(criterion: &mut Criterion) {
    let lexicon = builtin();
    let size = 64 * 1024;
    let prose = "I was in your shop on Tuesday and the people there were kind, but the shoes that I bought do not fit. ";
    let texts = [
        ("prose", prose.repeat(size / prose.len())),
        ("prose of one window", prose.repeat(40)),
        ("one letter", "s".repeat(size)),
        ("keywords", "stop ".repeat(size / 5)),
        ("quotes", "\"stop ".repeat(size / 6)),
        ("quoted lines", "> stop\n".repeat(size / 7)),
        ("beginnings of rules", "please do not never stop sending me ".repeat(size / 36)),
    ];
    let mut group = criterion.benchmark_group("long");
    for (name, text) in &texts {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(*name, |bencher| bencher.iter(|| classify_all(&lexicon, &[text])));
    }
    group.finish();
}

fn load(criterion: &mut Criterion) {
    criterion.bench_function("load the embedded lexicon", |bencher| bencher.iter(builtin));
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2)).warm_up_time(std::time::Duration::from_millis(500));
    targets = short, long, load
}
criterion_main!(benches);
