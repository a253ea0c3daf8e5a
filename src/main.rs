//! The verbs: arguments, logging, configuration, the exit code.
//!
//! Exit codes: 0 done, 1 failed while running, 2 wrong arguments or configuration.

mod cli;

use clap::{Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;
use stopgate::config::Verb;
use stopgate::run::service::Failure;

/// For the C client too: records are allocated by one thread and freed by another, which glibc's allocator does slowly
/// (measured: an eighth of the processor time of a send).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps marketing from people who said stop, on Kafka.
///
/// Stage 1 (detect) reads inbound messages and writes opt-outs to a compacted topic. Stage 2 (filter) holds that topic
/// in memory and lets through only the marketing sends that may go. Try `stopgate demo` first: it needs no broker.
#[derive(Parser)]
#[command(version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    verb: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show both stages at work on an embedded broker, with messages in six languages
    Demo(cli::demo::DemoArgs),
    /// Run both stages in one process
    Run(cli::service::ServiceArgs),
    /// Run stage 1: inbound messages → opt-outs
    Detect(cli::service::ServiceArgs),
    /// Run stage 2: sends → sends.allowed, sends.suppressed
    Filter(cli::service::ServiceArgs),
    /// Decide messages from standard input, one a line, as text or JSON, without a broker
    ///
    /// A line that starts with { is JSON {"id","text","button"?,"lang"?}; any other line is a text whose id is its number.
    /// Each is answered by one JSON line, in order: id, decision, rule, span, lang, scope.
    Classify(cli::classify::ClassifyArgs),
    /// Create the topics that are missing and print what differs; nothing that exists is changed
    Topics(cli::ClusterArgs),
    /// Print the effective configuration, secrets redacted, and everything that is wrong with it or with the topics
    Check(cli::service::ServiceArgs),
    /// Decide again what was decided, and compare it with what was written: exit code 0 same, 1 different, 2 trouble
    ///
    /// Every send is decided again at the position of opt-outs that its decision block names, and held against its outcome
    /// on sends.allowed, sends.suppressed or dead-letters, by hashes of key, value and headers. Missing, doubled, changed and misplaced outcomes are
    /// differences, and so are gaps between decision blocks. With --stage detect messages are understood again and held against
    /// the records of opt-outs that name them. Nothing is written anywhere. Interrupted, it prints the
    /// --offsets with which to go on.
    Replay(cli::replay::ReplayArgs),
    /// Tell one person's story in order of time: what was asked for and on what evidence, what was answered, which sends went
    ///
    /// Everything is read back from the topics, with positions. The inbound topic is not needed: the evidence is in the
    /// record. Exit code 1 where nothing is known of the one asked for.
    Explain(cli::explain::ExplainArgs),
    /// A period in figures: opt-outs by cause, language and campaign, time to effective, and that nothing leaked
    ///
    /// Read back from the topics, as text, CSV, JSON or one printable page. Every send of the period is decided again, as replay
    /// does: it takes as long.
    Report(cli::report::ReportArgs),
    /// The unsubscribe list: enter, show, list, export, import, heal
    OptOut(cli::opt_out::OptOutArgs),
    /// Messages that a person must judge: list them, lift, or opt out
    Review(cli::review::ReviewArgs),
    /// Measure speed on your own broker, beside the client's bare loop, on topics that are removed again
    Bench(cli::bench::BenchArgs),
}

fn main() -> ExitCode {
    stopgate::kafka::keep_free_pages();
    let result = match Cli::parse().verb {
        Command::Demo(args) => cli::demo::run(&args),
        Command::Run(args) => cli::service::run(&args, Verb::Run),
        Command::Detect(args) => cli::service::run(&args, Verb::Detect),
        Command::Filter(args) => cli::service::run(&args, Verb::Filter),
        Command::Classify(args) => cli::classify::run(&args),
        Command::Topics(args) => cli::topics::run(&args),
        Command::Check(args) => cli::check::run(&args),
        Command::Replay(args) => cli::replay::run(&args),
        Command::Explain(args) => cli::explain::run(&args),
        Command::Report(args) => cli::report::run(&args),
        Command::OptOut(args) => cli::opt_out::run(&args),
        Command::Review(args) => cli::review::run(&args),
        Command::Bench(args) => cli::bench::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let code = match failure {
                Failure::Refused(_) => 2,
                Failure::Failed(_) => 1,
            };
            // The last word of a process: where stderr is closed there is nobody to tell.
            drop(writeln!(std::io::stderr(), "stopgate: {failure}"));
            ExitCode::from(code)
        }
    }
}
