//! Which business is meant: numbers, accounts and former names, resolved to one name.
//!
//! All numbers of a business share one consent state, so every message, send and stored key is resolved here, by the
//! same table, when it is read. A change of the table therefore reaches old opt-outs too.

use super::phone::Phone;
use std::collections::{BTreeMap, HashMap};

/// One business as the operator lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Business {
    pub name: String,
    /// Numbers it sends from and receives on: phone numbers in any spelling, or provider ids of numbers.
    pub numbers: Vec<String>,
    /// Account ids: a WhatsApp business account, a Twilio account.
    pub accounts: Vec<String>,
    /// Names it had: keys written under them go on counting.
    pub former_names: Vec<String>,
}

/// The operator's list of businesses, ready for look-ups. An empty list means: every account stands for itself.
#[derive(Clone, Debug, Default)]
pub struct Businesses {
    /// Any alias, phone numbers as `+digits` → index into `names`.
    aliases: HashMap<Box<str>, usize>,
    names: Vec<Box<str>>,
}

/// One alias claimed twice: resolution would depend on order, so the list is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("business {second:?} claims an alias that business {first:?} has already: {alias:?}")]
pub struct AliasConflict {
    pub alias: String,
    pub first: String,
    pub second: String,
}

/// What a message or send says about the business it belongs to, as far as it says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BusinessHints<'a> {
    /// The business's own number or sender id (receiving number of a message, sending number of a send).
    pub number: Option<&'a str>,
    /// The provider's id of that number, where it has one beside the number itself.
    pub number_id: Option<&'a str>,
    /// The provider account.
    pub account: Option<&'a str>,
    /// The business as the record itself names it.
    pub named: Option<&'a str>,
}

impl Businesses {
    /// Builds the look-up table; reports every alias that two businesses claim.
    pub fn new(list: &[Business]) -> Result<Self, Vec<AliasConflict>> {
        let mut table = Self { aliases: HashMap::new(), names: list.iter().map(|one| one.name.as_str().into()).collect() };
        let mut conflicts = Vec::new();
        for (index, business) in list.iter().enumerate() {
            let aliases = std::iter::once(&business.name).chain(&business.numbers).chain(&business.accounts).chain(&business.former_names);
            for alias in aliases {
                let previous = table.aliases.insert(canonical_alias(alias), index);
                if let Some(previous) = previous.filter(|&previous| previous != index) {
                    conflicts.push(AliasConflict {
                        alias: alias.clone(),
                        first: table.names[previous].to_string(),
                        second: business.name.clone(),
                    });
                }
            }
        }
        if conflicts.is_empty() { Ok(table) } else { Err(conflicts) }
    }

    /// Whether the operator gave no list: then account ids stand for businesses and nobody is unlisted.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The listed name behind any alias.
    pub fn listed(&self, alias: &str) -> Option<&str> {
        if self.names.is_empty() {
            return None;
        }
        let index = match self.aliases.get(alias) {
            Some(index) => index,
            None => self.aliases.get(&canonical_alias(alias))?,
        };
        self.names.get(*index).map(|name| &**name)
    }

    /// The name under which a stored or given business counts today.
    pub fn resolve<'a>(&'a self, business: &'a str) -> &'a str {
        self.listed(business).unwrap_or(business)
    }

    /// Every alias and the name behind it, in order: two tables that tell the same resolve the same.
    pub fn resolutions(&self) -> BTreeMap<&str, &str> {
        self.aliases.iter().filter_map(|(alias, index)| Some((&**alias, &**self.names.get(*index)?))).collect()
    }

    /// Every name under which keys of this business may have been written, its own among them.
    pub fn names_of<'a>(&'a self, business: &'a str) -> Vec<&'a str> {
        let of_it = self.aliases.iter().filter(|(_, index)| self.names.get(**index).is_some_and(|name| **name == *business));
        std::iter::once(business).chain(of_it.map(|(alias, _)| &**alias).filter(|alias| *alias != business)).collect()
    }

    /// The business of an inbound message: by its receiving number, else its account, else the name it gives, else the
    /// receiving number itself. `None` where the message says nothing at all.
    pub fn of_message<'a>(&'a self, hints: &BusinessHints<'a>) -> Option<Box<str>> {
        let by_number = [hints.number, hints.number_id].into_iter().flatten().find_map(|number| self.listed(number));
        by_number
            .or_else(|| hints.account.map(|account| self.resolve(account)))
            .or_else(|| hints.named.map(|name| self.resolve(name)))
            .map(Into::into)
            .or_else(|| hints.number.map(canonical_alias))
    }

    /// The business of a send: by its sending number if that is listed, else the account, else the name it gives. A
    /// number that no list explains names no business: the state it should be checked against is not known.
    pub fn of_send<'a>(&'a self, hints: &BusinessHints<'a>) -> Result<&'a str, UnknownBusiness> {
        let by_number = [hints.number, hints.number_id].into_iter().flatten().find_map(|number| self.listed(number));
        let Some(given) = hints.account.or(hints.named) else {
            return by_number.ok_or(UnknownBusiness::NotNamed);
        };
        match by_number.or_else(|| self.listed(given)) {
            Some(listed) => Ok(listed),
            None if self.is_empty() => Ok(given),
            None => Err(UnknownBusiness::NotListed),
        }
    }
}

/// Why a send cannot be decided for want of a business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownBusiness {
    /// The send says nothing by which its business can be told.
    NotNamed,
    /// The operator listed the businesses and this is none of them.
    NotListed,
}

/// Phone numbers as `+` and canonical digits, anything else trimmed.
fn canonical_alias(alias: &str) -> Box<str> {
    match Phone::parse(alias) {
        // Bare digit strings may be account ids that look like numbers. They keep their spelling, unless a plus or a
        // scheme says that a phone number is meant; look-ups of either kind fold the same way.
        Some(phone) => format!("+{}", phone.as_str()).into(),
        None => alias.trim().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acme() -> Businesses {
        Businesses::new(&[Business {
            name: "acme".into(),
            numbers: vec!["+12025550100".into(), "800700600500400".into()],
            accounts: vec!["900100200300400".into()],
            former_names: vec!["acme-old".into()],
        }])
        .expect("no conflict")
    }

    #[test]
    fn every_alias_leads_to_one_name() {
        let businesses = acme();
        for alias in ["acme", "12025550100", "whatsapp:+12025550100", "800700600500400", "900100200300400", "acme-old"] {
            assert_eq!(businesses.listed(alias), Some("acme"), "{alias}");
        }
        assert_eq!(businesses.listed("globex"), None);
    }

    #[test]
    fn a_message_counts_for_the_number_it_was_sent_to_before_anything_else() {
        let businesses = acme();
        let hints = BusinessHints { number: Some("12025550100"), account: Some("other"), named: Some("globex"), ..Default::default() };
        assert_eq!(businesses.of_message(&hints).as_deref(), Some("acme"));
    }

    #[test]
    fn without_a_list_an_account_stands_for_itself() {
        let businesses = Businesses::default();
        let hints = BusinessHints { number: Some("12025550100"), account: Some("900100200300400"), ..Default::default() };
        assert_eq!(businesses.of_message(&hints).as_deref(), Some("900100200300400"));
        let number_only = BusinessHints { number: Some("12025550100"), ..Default::default() };
        assert_eq!(businesses.of_message(&number_only).as_deref(), Some("+12025550100"));
        assert_eq!(businesses.of_message(&BusinessHints::default()), None);
    }

    #[test]
    fn a_send_of_an_unlisted_business_is_not_decided() {
        let hints = BusinessHints { named: Some("globex"), ..Default::default() };
        assert_eq!(acme().of_send(&hints), Err(UnknownBusiness::NotListed));
        assert_eq!(Businesses::default().of_send(&hints), Ok("globex"));
        let number_only = BusinessHints { number: Some("+12025550100"), ..Default::default() };
        assert_eq!(acme().of_send(&number_only), Ok("acme"));
        assert_eq!(Businesses::default().of_send(&number_only), Err(UnknownBusiness::NotNamed));
    }

    #[test]
    fn an_alias_claimed_twice_is_refused() {
        let one = Business { name: "a".into(), numbers: vec!["+12025550100".into()], accounts: vec![], former_names: vec![] };
        let two = Business { name: "b".into(), numbers: vec!["1 202 555 0100".into()], accounts: vec![], former_names: vec![] };
        let conflicts = Businesses::new(&[one, two]).expect_err("a conflict");
        assert_eq!(conflicts.len(), 1);
        assert_eq!((conflicts[0].first.as_str(), conflicts[0].second.as_str()), ("a", "b"));
    }
}
