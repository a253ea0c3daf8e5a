//! `stopgate explain`.

use super::{ClusterArgs, failed, init_log, refused};
use clap::Args;
use std::io::BufWriter;
use std::path::PathBuf;
use stopgate::config::{LogFormat, Verb};
use stopgate::domain::consent::Position;
use stopgate::domain::identity::Identity;
use stopgate::domain::key::Channel;
use stopgate::run::explain;
use stopgate::run::history::{self, Scope, Whose};
use stopgate::run::service::Failure;

#[derive(Args)]
#[group(id = "whose", required = true, multiple = false, args = ["recipient", "send", "opt_out"])]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// A person: +5511912345678, bsuid:…, email:…, ext:…
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    recipient: Option<String>,
    /// The recipient of the send with this id
    #[arg(long, value_name = "ID")]
    send: Option<String>,
    /// The person of the consent record at this position of opt-outs, as stopgate-cause names it
    #[arg(long, value_name = "P@O", value_parser = super::position)]
    opt_out: Option<Position>,
    /// Of one business only
    #[arg(long, value_name = "NAME")]
    business: Option<String>,
    /// On one channel only, and what concerns all channels
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// Write one self-contained page that can be printed and handed over
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// One JSON object: person, events
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &ExplainArgs) -> Result<(), Failure> {
    init_log(LogFormat::Text, "error");
    let whose = match (&args.recipient, &args.send, args.opt_out) {
        (Some(recipient), _, _) => {
            // The number itself is not repeated: terminals are logged.
            let identity = Identity::recognise(recipient);
            Whose::Person(
                identity
                    .map_err(|_| refused("--recipient is no identity: give a number with + and country code, or bsuid:…, email:…, ext:…"))?,
            )
        }
        (None, Some(id), _) => Whose::Send(id.clone()),
        (None, None, Some(position)) => Whose::Act(position),
        (None, None, None) => return Err(refused("give --recipient, --send or --opt-out")),
    };
    let channel = args.channel.as_deref().map(|name| Channel::parse(name).ok_or_else(|| refused("--channel is empty"))).transpose()?;
    let scope = Scope { business: args.business.clone(), channel };
    let config = args.cluster.configure(Verb::Run)?;
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let story = history::read(&config, &whose, &scope, threads).map_err(refused)?;
    let story =
        story.ok_or_else(|| failed("nothing is known of the one asked for: no act, no answer and no send in what the topics still hold"))?;
    if let Some(path) = &args.report {
        let told = |error: std::io::Error| failed(format!("{}: {error}", path.display()));
        explain::html(&story, &mut BufWriter::new(std::fs::File::create(path).map_err(told)?)).map_err(told)?;
        if !args.json {
            return Ok(());
        }
    }
    let mut out = BufWriter::new(std::io::stdout().lock());
    match args.json {
        true => explain::json(&story, &mut out),
        false => explain::text(&story, &mut out),
    }
    .map_err(failed)
}
