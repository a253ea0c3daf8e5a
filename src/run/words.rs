//! The words that detection goes by: the built-in language files or those of a directory, with what was learned beside them,
//! and businesses' changes to them.

use crate::domain::classify::{Lexicon, LexiconFault, Override};
use crate::wire::lexicon;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why there is no lexicon to go by.
#[derive(Debug, thiserror::Error)]
pub enum WordsError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{}: no language file (*.toml)", .0.display())]
    Empty(PathBuf),
    #[error(transparent)]
    Fault(#[from] LexiconFault),
    #[error("[[business]] {business}: {fault}")]
    Business { business: String, fault: LexiconFault },
}

/// The lexicon of a directory of language files, or the built-in one.
pub fn load(directory: Option<&Path>) -> Result<Lexicon, WordsError> {
    let Some(directory) = directory else { return Ok(lexicon::builtin()) };
    let unread = |path: &Path| {
        let path = path.to_owned();
        move |error| WordsError::Read { path, error }
    };
    let entries = std::fs::read_dir(directory).map_err(unread(directory))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(unread(directory))?;
    // A directory of rules may hold a configuration beside the words.
    paths.retain(|path| {
        path.extension().is_some_and(|extension| extension == "toml") && path.file_name().is_some_and(|name| name != "stopgate.toml")
    });
    let name = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).map_or(usize::MAX, lexicon::place_of);
    paths.sort_by(|one, other| (name(one), one).cmp(&(name(other), other)));
    if paths.is_empty() {
        return Err(WordsError::Empty(directory.to_owned()));
    }
    let mut files = Vec::with_capacity(paths.len());
    for path in &paths {
        files.push((path.display().to_string(), std::fs::read_to_string(path).map_err(unread(path))?));
    }
    let files: Vec<(&str, &str)> = files.iter().map(|(name, contents)| (name.as_str(), contents.as_str())).collect();
    let path = directory.join(lexicon::LEARNED);
    let learned = match std::fs::read_to_string(&path) {
        Ok(contents) => Some(contents),
        // Rules alone are fine.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(unread(&path)(error)),
    };
    let name = path.display().to_string();
    Ok(lexicon::load(&files, learned.as_deref().map(|contents| (name.as_str(), contents)))?)
}

/// The lexicon of each business that changes words.
pub fn of_businesses(common: &Lexicon, changes: &BTreeMap<String, Vec<Override>>) -> Result<BTreeMap<String, Arc<Lexicon>>, WordsError> {
    let changed = |(business, changes): (&String, &Vec<Override>)| match common.with_overrides(changes) {
        Ok(lexicon) => Ok((business.clone(), Arc::new(lexicon))),
        Err(fault) => Err(WordsError::Business { business: business.clone(), fault }),
    };
    changes.iter().map(changed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::classify::{Change, Class, Message, classify};

    fn class(lexicon: &Lexicon, text: &str) -> Class {
        classify(lexicon, &Message { text: Some(text), ..Message::default() }).class
    }

    #[test]
    fn a_business_may_add_and_remove_words() {
        let change = |change, word: &str| Override { change, class: Class::OptOut, language: "en".into(), words: vec![word.into()] };
        let changes = [("acme".to_owned(), vec![change(Change::Add, "no thank you acme"), change(Change::Remove, "end")])].into();
        let common = load(None).expect("built in");
        let of_acme = &of_businesses(&common, &changes).expect("accepted")["acme"];
        assert_eq!(class(&common, "no thank you acme"), Class::None);
        assert_eq!(class(of_acme, "No thank you, Acme!"), Class::OptOut);
        assert_eq!(class(&common, "end"), Class::OptOut);
        assert_ne!(class(of_acme, "end"), Class::OptOut);
        assert_ne!(common.version(), of_acme.version());
    }

    #[test]
    fn a_directory_of_the_built_in_files_decides_as_they_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let learned = (lexicon::LEARNED, lexicon::EMBEDDED_LEARNED);
        for (name, contents) in lexicon::EMBEDDED.iter().chain([&learned]) {
            std::fs::write(directory.path().join(name), contents).expect("written");
        }
        let (copied, built_in) = (load(Some(directory.path())).expect("loaded"), load(None).expect("built in"));
        // Guards of the first language hold other languages' rules back, where these see a borrowed word.
        for text in ["plz dont stop sending me vouchers", "don't unsubscribe my account", "STOP", "please stop texting me"] {
            assert_eq!(class(&copied, text), class(&built_in, text), "{text}");
        }
    }

    #[test]
    fn a_directory_without_language_files_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(matches!(load(Some(directory.path())), Err(WordsError::Empty(_))));
        std::fs::write(directory.path().join("xx.toml"), "nonsense = [").expect("written");
        assert!(load(Some(directory.path())).expect_err("refused").to_string().contains("xx.toml:1"));
    }
}
