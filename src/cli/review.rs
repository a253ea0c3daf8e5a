//! `stopgate review`: messages that a person must judge.

use super::opt_out::Who;
use super::{ClusterArgs, failed, init_log, refused};
use clap::{Args, Subcommand};
use std::io::{BufWriter, Write};
use stopgate::config::{LogFormat, Verb};
use stopgate::run::list;
use stopgate::run::list::reviews::{self, Judgement};
use stopgate::run::now;
use stopgate::run::service::Failure;

#[derive(Args)]
pub(crate) struct ReviewArgs {
    #[command(subcommand)]
    verb: ReviewVerb,
}

#[derive(Subcommand)]
enum ReviewVerb {
    /// Print the messages that wait for a verdict, oldest first
    List(ListArgs),
    /// The message was no wish to stop: end its review and nothing else
    Lift(VerdictArgs),
    /// The message was a wish to stop: enter an opt-out of marketing as of its time
    OptOut(VerdictArgs),
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// JSON Lines
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct VerdictArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The id that `review list` prints
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    who: Who,
    /// JSON Lines
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &ReviewArgs) -> Result<(), Failure> {
    init_log(LogFormat::Text, "error");
    match &args.verb {
        ReviewVerb::List(args) => print_list(args),
        ReviewVerb::Lift(args) => judge(args, Judgement::Lift),
        ReviewVerb::OptOut(args) => judge(args, Judgement::OptOut),
    }
}

fn print_list(args: &ListArgs) -> Result<(), Failure> {
    let config = args.cluster.configure(Verb::Run)?;
    let now = now();
    let mut out = BufWriter::new(std::io::stdout().lock());
    for request in reviews::waiting(&config).map_err(failed)? {
        let waiting = reviews::shown(&request, now);
        let written = match args.json {
            true => serde_json::to_writer(&mut out, &waiting).map_err(std::io::Error::from).and_then(|()| writeln!(out)),
            false => {
                let text: String = waiting.text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
                let overdue = if waiting.overdue { "overdue since" } else { "until" };
                let (from, deadline) = (waiting.from.join(", "), waiting.deadline);
                writeln!(
                    out,
                    "{}  {}  {} on {}  {from}  {overdue} {deadline}",
                    waiting.id, waiting.occurred_at, waiting.business, waiting.channel
                )
                .and_then(|()| writeln!(out, "    “{text}”  ({})", waiting.rule))
            }
        };
        written.map_err(failed)?;
    }
    out.flush().map_err(failed)
}

fn judge(args: &VerdictArgs, judgement: Judgement) -> Result<(), Failure> {
    let config = args.cluster.configure(Verb::Run)?;
    let grounds = args.who.grounds("");
    let entries = reviews::verdict(&config, &args.id, judgement, &grounds).map_err(failed)?;
    let entries = entries
        .ok_or_else(|| failed("no review of this id waits: it was judged, or the person has spoken since, or it is past its retention"))?;
    let entered = list::enter(&config, &entries, now()).map_err(failed)?.map_err(refused)?;
    let mut out = std::io::stdout().lock();
    for (entry, entered) in entries.iter().zip(entered) {
        let key = stopgate::wire::consent::encode_key(&entry.key);
        let (position, written) = match entered.outcome {
            list::Outcome::Written { position, .. } => (position, true),
            list::Outcome::Stood(act) => (act.cause, false),
        };
        let state = entry.state.as_str();
        match args.json {
            true => {
                let told = serde_json::json!({ "key": key.as_str(), "state": state, "position": position.to_string(), "written": written });
                writeln!(out, "{told}")
            }
            false => {
                let how = if written { "" } else { "not written, what stands is " };
                writeln!(out, "{state}  {}  {how}opt-outs record {position}", key.as_str())
            }
        }
        .map_err(failed)?;
    }
    Ok(())
}
