//! `stopgate opt-out`: the unsubscribe list, by hand and by file.

use super::{ClusterArgs, failed, init_log, refused, stop_on_signals};
use clap::{Args, Subcommand, ValueEnum};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use stopgate::config::{Config, LogFormat, Verb};
use stopgate::domain::consent::{ConsentState, Position};
use stopgate::domain::decide::Decision;
use stopgate::domain::identity::Identity;
use stopgate::domain::key::{Channel, Subject};
use stopgate::domain::time::Timestamp;
use stopgate::run::list::{self, AsOf, Filter, Import, Outcome, Told};
use stopgate::run::now;
use stopgate::run::service::Failure;
use stopgate::run::stop::Stop;
use stopgate::stage::entry::{Defaults, Entry, Grounds};
use stopgate::wire::consent::encode_key;
use stopgate::wire::list::{Given, ListFormat};
use stopgate::wire::when;

#[derive(Args)]
pub(crate) struct OptOutArgs {
    #[command(subcommand)]
    verb: OptOutVerb,
}

#[derive(Subcommand)]
enum OptOutVerb {
    /// Enter an opt-out: from the moment this returns no marketing send to the person is allowed
    ///
    /// Exit code 0: it stands, written now or known before. 1: a later opt-in stands over it, and nothing was written.
    Add(EntryArgs),
    /// Enter an opt-in: the person wished to come back, and there is proof of it
    ///
    /// Ends the opt-outs of its subject and of what that covers: all covers marketing, which covers programs. Exit code 1: a
    /// later opt-out stands over it, and nothing was written.
    Remove(EntryArgs),
    /// Show what stands for a person; exit code 1 where nothing is known
    Show(ShowArgs),
    /// Print what stands, one line each; see export for files
    List(ListArgs),
    /// Write what stands as CSV or JSON Lines, now or as it was
    ///
    /// Columns: business,channel,identity,subject,state,occurred_at,reason,source. The positions of opt-outs as of which it
    /// was told go to standard error. Memory: that of the set, about 20 bytes for each key.
    Export(ExportArgs),
    /// Enter a list of opt-outs, CSV or JSON Lines with the columns of export, from a file or - for standard input
    ///
    /// Only the identity must be there (also named to, phone, number, email): state is opted-out and the rest comes from the
    /// flags. A row that cannot be entered is told with its line and the others go in: exit code 1. Rows that are known, or
    /// that a later act supersedes, are not written: a list may be imported again after an interruption. Rows that opt
    /// somebody in need --proof.
    Import(ImportArgs),
    /// Erase what opt-outs says of a person; somebody who is opted out stays so, under a keyed hash
    ///
    /// Needs identity_hash_key where the person is opted out. Every view forgets the keys at once; the bytes leave the log
    /// when compaction may take them, which is the audit window later (`min.compaction.lag.ms`). Other topics are not touched:
    /// what they hold leaves them by their own retention. Exit code 1 where nothing is known.
    Erase(EraseArgs),
    /// Append again what compaction would take away: acts that stand, behind which an older act was written
    ///
    /// `stopgate_consent_older_acts_total` counts such acts. With --dry-run exit code 1 says that something is due.
    Heal(HealArgs),
}

/// What the evidence says of whoever enters something; a row of a list may give a reason of its own.
#[derive(Args)]
pub(super) struct Who {
    /// Why, for the evidence
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Who it is, for the evidence
    #[arg(long, env = "USER", value_name = "NAME", default_value = "operator")]
    actor: String,
}

impl Who {
    /// The grounds, with what is put forward as proof.
    pub(super) fn grounds(&self, proof: &str) -> Grounds {
        Grounds { actor: self.actor.clone(), reason: self.reason.clone(), proof: proof.to_owned(), list: None }
    }
}

/// Whose state, about what.
#[derive(Args)]
struct Whose {
    /// The business, by any name that the configuration knows
    #[arg(long, value_name = "NAME")]
    business: String,
    /// The channel, or * for all [default: that of the configuration]
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// The person: +5511912345678, bsuid:…, email:…, ext:…
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    to: String,
}

#[derive(Args)]
struct EntryArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    whose: Whose,
    /// marketing, all, review or program:ID
    #[arg(long, value_name = "SUBJECT", default_value = "marketing")]
    subject: String,
    /// When the person said so (RFC 3339) [default: now]
    #[arg(long, value_name = "T")]
    at: Option<String>,
    #[command(flatten)]
    who: Who,
    /// What shows that the person wished it: a ticket, a document; needed for an opt-in
    #[arg(long, value_name = "TEXT", default_value = "")]
    proof: String,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ShowArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    whose: Whose,
    /// JSON Lines with the columns of export
    #[arg(long)]
    json: bool,
}

/// Which rows.
#[derive(Args)]
struct FilterArgs {
    /// Of one business only
    #[arg(long, value_name = "NAME")]
    business: Option<String>,
    /// On one channel only, and what concerns all channels
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// About one subject only
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
    /// In one state only [default: both]
    #[arg(long, value_name = "STATE")]
    state: Option<State>,
    /// As it was: P@O,… for every partition, as stopgate-as-of names them, or a time (RFC 3339)
    #[arg(long, value_name = "P@O,…|T", value_parser = as_of)]
    as_of: Option<AsOf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    OptedOut,
    OptedIn,
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// JSON Lines with the columns of export
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ExportArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// What to write
    #[arg(long, value_enum, default_value = "csv")]
    format: Format,
    /// The same as --format jsonl
    #[arg(long)]
    json: bool,
    /// Where to [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Csv,
    Jsonl,
}

#[derive(Args)]
struct ImportArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The list, or - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What it is [default: seen from its first line]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// The business of rows that name none
    #[arg(long, value_name = "NAME")]
    business: Option<String>,
    /// The channel of rows that name none [default: that of the configuration]
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// The subject of rows that name none
    #[arg(long, value_name = "SUBJECT", default_value = "marketing")]
    subject: String,
    /// The time of rows that name none (RFC 3339) [default: now]
    #[arg(long, value_name = "T")]
    at: Option<String>,
    #[command(flatten)]
    who: Who,
    /// What shows that people wished to come back: without it no row opts anybody in
    #[arg(long, value_name = "TEXT", default_value = "")]
    proof: String,
    /// Judge every row and write nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON object for each row that is left out, then {"summary":…}
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct EraseArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The business, by any name that the configuration knows
    #[arg(long, value_name = "NAME")]
    business: String,
    /// On one channel only [default: on all]
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// The person: +5511912345678, bsuid:…, email:…, ext:…
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    to: String,
    #[command(flatten)]
    who: Who,
    /// Say what would be erased and write nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct HealArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Say what is due and write nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &OptOutArgs) -> Result<(), Failure> {
    init_log(LogFormat::Text, "error");
    match &args.verb {
        OptOutVerb::Add(args) => enter(args, ConsentState::OptedOut),
        OptOutVerb::Remove(args) => enter(args, ConsentState::OptedIn),
        OptOutVerb::Show(args) => show(args),
        OptOutVerb::List(args) => print_list(args),
        OptOutVerb::Export(args) => export(args),
        OptOutVerb::Import(args) => import(args),
        OptOutVerb::Erase(args) => erase(args),
        OptOutVerb::Heal(args) => heal(args),
    }
}

fn subject(name: &str) -> Result<Subject, Failure> {
    Subject::parse(name).ok_or_else(|| refused("--subject is marketing, all, review or program:ID"))
}

fn channel(name: Option<&str>, config: &Config) -> Result<Channel, Failure> {
    name.map_or_else(|| Ok(config.default_channel.clone()), |name| Channel::parse(name).ok_or_else(|| refused("--channel is empty")))
}

fn at(text: Option<&str>, now: Timestamp) -> Result<Timestamp, Failure> {
    let at = text.map_or(Ok(now), |text| super::time(text).map_err(|error| refused(format!("--at: {error}"))))?;
    if at > now { Err(refused("--at lies in the future")) } else { Ok(at) }
}

/// The number itself is never repeated: terminals are logged.
fn not_an_identity<T>(_: T) -> Failure {
    refused("--to is no identity: give a number with + and country code, or bsuid:…, email:…, ext:…")
}

fn enter(args: &EntryArgs, state: ConsentState) -> Result<(), Failure> {
    let config = args.cluster.configure(Verb::Run)?;
    let now = now();
    Identity::recognise(&args.whose.to).map_err(not_an_identity)?;
    let (channel, subject) = (channel(args.whose.channel.as_deref(), &config)?, subject(&args.subject)?);
    let defaults = Defaults {
        businesses: &config.businesses,
        business: Some(&args.whose.business),
        channel: &channel,
        subject: &subject,
        occurred_at: at(args.at.as_deref(), now)?,
        hashed: config.hashed,
    };
    let given = Given { identity: Some(args.whose.to.clone()), state: Some(state.as_str().to_owned()), ..Given::default() };
    let grounds = args.who.grounds(&args.proof);
    let entry = Entry::of(&given, &defaults, grounds).map_err(refused)?;
    let entered = list::enter(&config, std::slice::from_ref(&entry), now).map_err(failed)?.map_err(refused)?;
    let Some(entered) = entered.into_iter().next() else { return Err(failed("nothing was entered")) };
    let mut out = std::io::stdout().lock();
    let key = encode_key(&entry.key);
    let (position, occurred_at, stands, changed) = match &entered.outcome {
        Outcome::Written { position, changed } => (*position, entry.occurred_at, state, *changed),
        Outcome::Stood(act) => (act.cause, act.occurred_at, act.state, false),
    };
    let written = matches!(entered.outcome, Outcome::Written { .. });
    let (sends, cause) = match entered.sends {
        Decision::Allowed(reason) => (format!("allowed ({})", reason.as_str()), None),
        Decision::Suppressed { reason, cause } => (format!("suppressed ({})", reason.as_str()), cause),
    };
    let cause_text = cause.map(|cause| format!(", by opt-outs record {cause}")).unwrap_or_default();
    if args.json {
        let decision = if cause.is_some() { "suppressed" } else { "allowed" };
        let told = serde_json::json!({
            "key": key.as_str(), "state": stands.as_str(), "occurred_at": when::to_text(occurred_at), "position": position.to_string(),
            "written": written, "changed": changed, "marketing": decision, "cause": cause.map(|cause| cause.to_string()),
        });
        writeln!(out, "{told}").map_err(failed)?;
    } else {
        let how = if written { "written" } else { "not written: this stands already" };
        writeln!(out, "{}  {}  {}  opt-outs record {position} ({how})", when::to_text(occurred_at), stands.as_str(), key.as_str())
            .and_then(|()| writeln!(out, "marketing sends: {sends}{cause_text}"))
            .map_err(failed)?;
    }
    match entered.outcome.is_as_asked(state) {
        true => Ok(()),
        false => {
            Err(failed(format!("a later act stands: {} since {}, opt-outs record {position}", stands.as_str(), when::to_text(occurred_at))))
        }
    }
}

fn show(args: &ShowArgs) -> Result<(), Failure> {
    let config = args.cluster.configure(Verb::Run)?;
    let identity = Identity::recognise(&args.whose.to).map_err(not_an_identity)?;
    let filter = Filter {
        business: Some(config.businesses.resolve(&args.whose.business).to_owned()),
        channel: args.whose.channel.as_deref().map(|name| channel(Some(name), &config)).transpose()?,
        identities: config.identities_of(&identity),
        ..Filter::default()
    };
    match tell(&config, &AsOf::Now, &filter, None, args.json)? {
        0 => Err(failed("nothing is known of this person: no act stands")),
        _ => Ok(()),
    }
}

fn print_list(args: &ListArgs) -> Result<(), Failure> {
    let config = args.cluster.configure(Verb::Run)?;
    let (as_of, filter) = args.filter.meant(&config)?;
    tell(&config, &as_of, &filter, args.limit, args.json).map(drop)
}

impl FilterArgs {
    fn meant(&self, config: &Config) -> Result<(AsOf, Filter), Failure> {
        let filter = Filter {
            business: self.business.as_deref().map(|name| config.businesses.resolve(name).to_owned()),
            channel: self.channel.as_deref().map(|name| channel(Some(name), config)).transpose()?,
            identities: Vec::new(),
            subject: self.subject.as_deref().map(subject).transpose()?,
            state: self.state.map(|state| match state {
                State::OptedOut => ConsentState::OptedOut,
                State::OptedIn => ConsentState::OptedIn,
            }),
        };
        Ok((self.as_of.clone().unwrap_or_default(), filter))
    }
}

/// Prints rows. Returns how many.
fn tell(config: &Config, as_of: &AsOf, filter: &Filter, limit: Option<u64>, json: bool) -> Result<u64, Failure> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut rows = 0;
    let told = list::standing(config, as_of, filter, |standing| {
        if limit.is_some_and(|limit| rows >= limit) {
            return Ok(false);
        }
        rows += 1;
        let row = &standing.row;
        match json {
            true => serde_json::to_writer(&mut out, row).map_err(std::io::Error::from).and_then(|()| writeln!(out))?,
            false => writeln!(
                out,
                "{}  {:<9}  {}|{}|{}|{}  {}  {}  ({})",
                row.occurred_at, row.state, row.business, row.channel, row.identity, row.subject, row.reason, row.source, standing.position
            )?,
        }
        Ok(true)
    });
    let told = closed_is_fine(told)?;
    closed_is_fine(out.flush().map_err(Into::into))?;
    told.iter().for_each(warn);
    Ok(rows)
}

/// Who reads the answer may stop reading, as `head` does.
fn closed_is_fine<T>(result: Result<T, stopgate::run::readers::Trouble>) -> Result<Option<T>, Failure> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(stopgate::run::readers::Trouble::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(None),
        Err(error) => Err(refused(error)),
    }
}

fn warn(told: &Told) {
    let say = |text: String| drop(writeln!(std::io::stderr(), "stopgate: {text}"));
    if let Some(first) = told.gone.first() {
        say(format!(
            "records are missing from {first} on: compaction has taken them, or a transaction's marker stands there; states of that time that ended since may be missing"
        ));
    }
    if let Some(first) = told.unreadable.first() {
        say(format!("{} records of opt-outs have unreadable keys, the first at {first}: nobody knows whom they concern", told.unreadable.len()));
    }
}

fn as_of(text: &str) -> Result<AsOf, String> {
    if let Some(time) = when::from_text(text).filter(|_| !text.contains('@')) {
        return Ok(AsOf::Time(time));
    }
    text.split(',')
        .map(super::position)
        .collect::<Result<Vec<Position>, String>>()
        .map(AsOf::Positions)
        .map_err(|_| format!("{text:?} is neither P@O,… such as 0@1017,1@998 nor a time such as 2026-11-01T10:00:00Z"))
}

fn export(args: &ExportArgs) -> Result<(), Failure> {
    let config = args.cluster.configure(Verb::Run)?;
    let (as_of, filter) = args.filter.meant(&config)?;
    let format = if args.json { ListFormat::JsonLines } else { args.format.meant() };
    let written = match &args.output {
        None => closed_is_fine(list::export(&config, &as_of, &filter, format, BufWriter::new(std::io::stdout().lock())))?,
        Some(path) => {
            let told = |error: std::io::Error| failed(format!("{}: {error}", path.display()));
            let file = private(path).map_err(told)?;
            Some(list::export(&config, &as_of, &filter, format, BufWriter::new(file)).map_err(refused)?)
        }
    };
    if let Some((rows, told)) = written {
        let positions = stopgate::stage::filter::as_of_text(&told.as_of);
        drop(writeln!(std::io::stderr(), "{rows} rows as of {positions}"));
        warn(&told);
    }
    Ok(())
}

/// A file that its owner alone may read: it names people.
fn private(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

impl Format {
    fn meant(self) -> ListFormat {
        match self {
            Self::Csv => ListFormat::Csv,
            Self::Jsonl => ListFormat::JsonLines,
        }
    }
}

fn import(args: &ImportArgs) -> Result<(), Failure> {
    let config = args.cluster.configure(Verb::Run)?;
    let now = now();
    let (channel, subject) = (channel(args.channel.as_deref(), &config)?, subject(&args.subject)?);
    let told = |error: std::io::Error| refused(format!("{}: {error}", args.file.display()));
    // Read twice: the hash of the list stands in the evidence of each of its rows.
    let (sha256, list): (String, Box<dyn BufRead>) = if args.file.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).map_err(told)?;
        (list::sha256(bytes.as_slice()).map_err(told)?, Box::new(Cursor::new(bytes)))
    } else {
        let open = || File::open(&args.file).map(BufReader::new);
        (open().and_then(list::sha256).map_err(told)?, Box::new(open().map_err(told)?))
    };
    let how = Import {
        defaults: Defaults {
            businesses: &config.businesses,
            business: args.business.as_deref(),
            channel: &channel,
            subject: &subject,
            occurred_at: at(args.at.as_deref(), now)?,
            hashed: config.hashed,
        },
        grounds: args.who.grounds(&args.proof),
        format: args.format.map(Format::meant),
        sha256,
        dry_run: args.dry_run,
        now,
    };
    let stop = Stop::default();
    stop_on_signals(&stop).map_err(failed)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut unheard = None;
    let imported = list::import(&config, &how, list, &stop, |line, problem| {
        let told = match args.json {
            true => writeln!(out, "{}", serde_json::json!({ "line": line, "error": problem.to_string() })),
            false => writeln!(std::io::stderr(), "line {line}: {problem}"),
        };
        unheard = unheard.take().or(told.err());
    });
    let imported = imported.map_err(failed)?.map_err(|error| refused(format!("{}: {error}", args.file.display())))?;
    match args.json {
        true => writeln!(out, "{}", serde_json::json!({ "summary": imported })),
        false => {
            let written = if args.dry_run { "to be written" } else { "written" };
            let list::Imported { rows, written: count, changed, stood, refused, interrupted: _ } = imported;
            writeln!(out, "{rows} rows: {count} {written} ({changed} changed what stood), {stood} stood already, {refused} left out")
        }
    }
    .and_then(|()| out.flush())
    .map_err(failed)?;
    if imported.interrupted {
        return Err(failed("stopped before the end: import it again, what was written is found"));
    }
    match (imported.refused, unheard) {
        (_, Some(error)) => Err(failed(error)),
        (0, None) => Ok(()),
        (count, None) => Err(failed(format!("{count} rows were left out"))),
    }
}

fn erase(args: &EraseArgs) -> Result<(), Failure> {
    let config = args.cluster.configure(Verb::Run)?;
    let identity = Identity::recognise(&args.to).map_err(not_an_identity)?;
    let channel = args.channel.as_deref().map(|name| channel(Some(name), &config)).transpose()?;
    let grounds = args.who.grounds("");
    let business = config.businesses.resolve(&args.business);
    let erased = list::erase(&config, business, channel.as_ref(), &identity, &grounds, args.dry_run).map_err(refused)?;
    if erased.keys == 0 && erased.guidance == 0 {
        return Err(failed("nothing is known of this person"));
    }
    let mut out = std::io::stdout().lock();
    let list::Erased { keys, protected, hash, guidance } = &erased;
    match args.json {
        true => writeln!(
            out,
            "{}",
            serde_json::json!({ "keys": keys, "protected": protected, "hash": hash, "guidance": guidance, "erased": !args.dry_run })
        ),
        false => {
            let erased = if args.dry_run { "to be erased" } else { "erased" };
            let days = config.topics.audit_days;
            writeln!(out, "{keys} keys {erased}; the bytes leave the log after its compaction lag, {days} days by default").and_then(|()| {
                if *guidance > 0 {
                    writeln!(out, "{guidance} keys of {} {erased}", config.topics.guidance)?;
                }
                match hash {
                    Some(hash) => writeln!(out, "{protected} acts go on standing under {hash}"),
                    None => writeln!(out, "the person is opted out of nothing: nothing goes on standing"),
                }
            })
        }
    }
    .map_err(failed)
}

fn heal(args: &HealArgs) -> Result<(), Failure> {
    let config = args.cluster.configure(Verb::Run)?;
    let healed = list::heal(&config, args.dry_run).map_err(failed)?;
    let mut out = std::io::stdout().lock();
    let due: Vec<String> = healed.due.iter().map(ToString::to_string).collect();
    match args.json {
        true => writeln!(out, "{}", serde_json::json!({ "records": healed.records, "due": due, "healed": !args.dry_run })),
        false => {
            let what = if args.dry_run { "to be appended again" } else { "appended again" };
            let list = if due.is_empty() { String::new() } else { format!(": {}", due.join(" ")) };
            writeln!(out, "{} records read, {} {what}{list}", healed.records, due.len())
        }
    }
    .map_err(failed)?;
    match args.dry_run && !due.is_empty() {
        true => Err(failed("healing is due: run it without --dry-run")),
        false => Ok(()),
    }
}
