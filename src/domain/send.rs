//! One intended contact, as a campaign system asks for it.

use super::business::BusinessHints;
use super::identity::Identities;
use super::key::Channel;
use super::time::Timestamp;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// One send, its texts borrowed from the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundSend<'a> {
    /// The business as the send names it.
    pub business: Option<Cow<'a, str>>,
    /// The number or sender id it goes out from.
    pub from: Option<Cow<'a, str>>,
    /// `None`: the configured default.
    pub channel: Option<Channel>,
    /// Everything that identifies the recipient.
    pub to: Identities,
    pub category: Option<Cow<'a, str>>,
    pub template: Option<Cow<'a, str>>,
    pub program: Option<Cow<'a, str>>,
    /// When it is worth nothing any more.
    pub expires_at: Option<Timestamp>,
}

impl OutboundSend<'_> {
    /// What the send says about its business.
    pub fn hints(&self) -> BusinessHints<'_> {
        BusinessHints { number: self.from.as_deref(), number_id: None, account: None, named: self.business.as_deref() }
    }
}

/// Which sends are marketing: by the send's own category and by the table of templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Categories {
    /// Lower-cased categories that pass unless a person stopped everything.
    exempt: Vec<String>,
    /// Template id → its lower-cased category.
    templates: BTreeMap<String, String>,
}

impl Categories {
    /// The exempt categories (in any case) and the category of each template.
    pub fn new(exempt: impl IntoIterator<Item = String>, templates: BTreeMap<String, String>) -> Self {
        Self {
            exempt: exempt.into_iter().map(|category| category.to_lowercase()).collect(),
            templates: templates.into_iter().map(|(template, category)| (template, category.to_lowercase())).collect(),
        }
    }

    /// Whether the send is exempt: somebody knows its category and nobody calls it anything but exempt. What neither
    /// the field nor the table knows is marketing, and so is what one of them calls marketing: mixed content counts as
    /// promotional.
    pub fn is_exempt(&self, send: &OutboundSend<'_>) -> bool {
        self.exempts(send.category.as_deref(), send.template.as_deref())
    }

    /// The same of a category and a template.
    pub fn exempts(&self, category: Option<&str>, template: Option<&str>) -> bool {
        let by_field = category.map(|category| self.names_exempt(category.trim()));
        let by_table = template.and_then(|template| self.templates.get(template)).map(|category| self.names_exempt(category));
        match (by_field, by_table) {
            (Some(by_field), Some(by_table)) => by_field && by_table,
            (Some(known), None) | (None, Some(known)) => known,
            (None, None) => false,
        }
    }

    fn names_exempt(&self, category: &str) -> bool {
        // Three words as a rule: comparing without folding the send's word first is the cheaper way.
        self.exempt.iter().any(|exempt| exempt.eq_ignore_ascii_case(category))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::identity::Identity;

    #[track_caller]
    fn check(category: Option<&str>, template: Option<&str>, exempt: bool) {
        let templates = [("order_update".to_owned(), "UTILITY".to_owned()), ("sale".to_owned(), "marketing".to_owned())];
        let categories = Categories::new(["utility".into(), "authentication".into(), "service".into()], templates.into());
        let send = OutboundSend {
            business: None,
            from: None,
            channel: None,
            to: Identities::new(vec![Identity::parse("ext:1").expect("an identity")]).expect("somebody"),
            category: category.map(Cow::Borrowed),
            template: template.map(Cow::Borrowed),
            program: None,
            expires_at: None,
        };
        assert_eq!(categories.is_exempt(&send), exempt, "{category:?} {template:?}");
    }

    #[test]
    fn a_send_is_marketing_unless_all_who_know_call_it_exempt() {
        check(None, None, false);
        check(Some("utility"), None, true);
        check(Some("UTILITY"), None, true);
        check(Some("Authentication"), Some("unknown"), true);
        check(Some("promo"), None, false);
        check(None, Some("order_update"), true);
        check(Some("utility"), Some("sale"), false);
        check(Some("marketing"), Some("order_update"), false);
    }
}
