//! The webhook body of Meta's WhatsApp Cloud API.
//!
//! A body holds entries (accounts), an entry holds changes (numbers), a change holds messages, statuses and preferences
//! of many people. Each of them has a place in the body; places are counted in the order entries, changes, and within a
//! change: messages, statuses, user_preferences, user_id_update. A change that holds none of them has one place.
//!
//! # Invariants
//!
//! - Echoes of the business's own messages, imported history and state of the business's phone never act.
//! - `contacts` beside a message adds ids to its sender only where it is the same person for certain.
//! - Where an event has no id of its own it gets one that is equal for redeliveries and holds no address in clear.
//!
//! Source of the shape: Meta's Cloud API webhook reference.

use super::json::{Field, List, Object};
use super::{Collector, Decoded, whatsapp};
use crate::domain::identity::{Identities, Identity};
use crate::domain::key::Channel;
use crate::domain::message::{Content, InboundMessage, OwnedBusinessHints};
use crate::wire::DecodeError;
use serde::Deserialize;
use whatsapp::{ErrorCode, phone_or_user_id, user_id};

#[derive(Debug, Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    object: Field<'a>,
    #[serde(borrow, default)]
    entry: List<Entry<'a>>,
}

#[derive(Debug, Deserialize)]
struct Entry<'a> {
    /// The WhatsApp business account.
    #[serde(borrow, default)]
    id: Field<'a>,
    #[serde(borrow, default)]
    changes: List<Change<'a>>,
}

#[derive(Debug, Deserialize)]
struct Change<'a> {
    #[serde(borrow, default)]
    field: Field<'a>,
    #[serde(borrow, default)]
    value: Object<Value<'a>>,
}

#[derive(Debug, Deserialize)]
struct Value<'a> {
    #[serde(borrow, default)]
    metadata: Object<Metadata<'a>>,
    #[serde(borrow, default)]
    contacts: List<Contact<'a>>,
    #[serde(borrow, default)]
    messages: List<whatsapp::Message<'a>>,
    #[serde(borrow, default)]
    statuses: List<Status<'a>>,
    #[serde(borrow, default)]
    user_preferences: List<UserPreference<'a>>,
    #[serde(borrow, default)]
    user_id_update: List<UserIdUpdate<'a>>,
}

#[derive(Debug, Deserialize)]
struct Metadata<'a> {
    #[serde(borrow, default)]
    display_phone_number: Field<'a>,
    #[serde(borrow, default)]
    phone_number_id: Field<'a>,
}

#[derive(Debug, Deserialize)]
struct Contact<'a> {
    #[serde(borrow, default)]
    wa_id: Field<'a>,
    #[serde(borrow, default)]
    user_id: Field<'a>,
    #[serde(borrow, default)]
    parent_user_id: Field<'a>,
}

impl Contact<'_> {
    fn ids(&self) -> [Option<Identity>; 3] {
        [phone_or_user_id(&self.wa_id), user_id(&self.user_id), user_id(&self.parent_user_id)]
    }
}

/// What became of a send.
#[derive(Debug, Deserialize)]
struct Status<'a> {
    #[serde(borrow, default)]
    id: Field<'a>,
    #[serde(borrow, default)]
    timestamp: Field<'a>,
    #[serde(borrow, default)]
    recipient_id: Field<'a>,
    #[serde(borrow, default)]
    recipient_user_id: Field<'a>,
    #[serde(borrow, default)]
    recipient_parent_user_id: Field<'a>,
    #[serde(borrow, default)]
    errors: List<ErrorCode<'a>>,
}

/// WhatsApp's own control "stop marketing messages".
#[derive(Debug, Deserialize)]
struct UserPreference<'a> {
    #[serde(borrow, default)]
    wa_id: Field<'a>,
    #[serde(borrow, default)]
    user_id: Field<'a>,
    #[serde(borrow, default)]
    parent_user_id: Field<'a>,
    #[serde(borrow, default)]
    category: Field<'a>,
    #[serde(borrow, default)]
    value: Field<'a>,
    #[serde(borrow, default)]
    timestamp: Field<'a>,
}

#[derive(Debug, Deserialize)]
struct UserIdUpdate<'a> {
    #[serde(borrow, default)]
    wa_id: Field<'a>,
    #[serde(borrow, default)]
    user_id: Object<IdChange<'a>>,
    #[serde(borrow, default)]
    parent_user_id: Object<IdChange<'a>>,
    #[serde(borrow, default)]
    timestamp: Field<'a>,
}

#[derive(Debug, Deserialize)]
struct IdChange<'a> {
    #[serde(borrow, default)]
    previous: Field<'a>,
    #[serde(borrow, default)]
    current: Field<'a>,
}

/// Changes of these fields hold what the business wrote itself or what happened long ago.
const SILENT_FIELDS: [&str; 4] = ["smb_message_echoes", "message_echoes", "history", "smb_app_state_sync"];

/// Reads a webhook body.
pub(super) fn read(json: &[u8]) -> Result<Decoded, DecodeError> {
    let body: Body<'_> = super::json::read(json)?;
    let is_whatsapp = body.object.text().is_none_or(|object| object == "whatsapp_business_account");
    if !is_whatsapp || body.entry.0.is_empty() {
        return Err(DecodeError::UnknownShape);
    }
    let mut collector = Collector::default();
    for entry in &body.entry.0 {
        let changes = entry.as_ref().map_or(&[][..], |entry| &entry.changes.0);
        if changes.is_empty() {
            // Messenger and others have `messaging` here.
            collector.push(Err(DecodeError::UnknownShape));
        }
        for change in changes {
            match (entry, change) {
                (Some(entry), Some(change)) => read_change(entry, change, &mut collector),
                (_, _) => collector.push(Err(DecodeError::Malformed)),
            }
        }
    }
    collector.finish()
}

fn read_change(entry: &Entry<'_>, change: &Change<'_>, collector: &mut Collector) {
    if SILENT_FIELDS.iter().any(|field| change.field.is(field)) {
        return collector.push(Ok(None));
    }
    let Object(Some(value)) = &change.value else {
        return collector.push(Err(DecodeError::Malformed));
    };
    let contacts: Vec<_> = value.contacts.objects().map(Contact::ids).collect();
    let ids = contacts.iter().enumerate().flat_map(|(contact, ids)| ids.iter().flatten().map(move |id| (id, contact)));
    let mut contacts_by_id: Vec<_> = ids.collect();
    contacts_by_id.sort_unstable();
    let place = Place { entry, value, contacts: &contacts, contacts_by_id: &contacts_by_id };
    let before = collector.next;
    for message in &value.messages.0 {
        collector.push(message.as_ref().ok_or(DecodeError::Malformed).and_then(|message| place.message(message)));
    }
    for status in &value.statuses.0 {
        collector.push(status.as_ref().map_or(Ok(None), |status| place.status(status)));
    }
    for preference in &value.user_preferences.0 {
        collector.push(preference.as_ref().ok_or(DecodeError::Malformed).and_then(|one| place.preference(one)));
    }
    for update in &value.user_id_update.0 {
        collector.push(update.as_ref().ok_or(DecodeError::Malformed).and_then(|update| place.user_id_update(update)));
    }
    if collector.next == before {
        collector.push(Ok(None));
    }
}

/// Where in the body something stands.
struct Place<'p, 'a> {
    entry: &'p Entry<'a>,
    value: &'p Value<'a>,
    /// The ids of each contact: phone, user, parent.
    contacts: &'p [[Option<Identity>; 3]],
    /// The contacts that have an id, in the order of ids: a body may hold thousands of messages and contacts.
    contacts_by_id: &'p [(&'p Identity, usize)],
}

/// No person is described by more contacts than these; a body that says otherwise is not followed further.
const CONTACTS_OF_ONE_PERSON: usize = 4;

impl Place<'_, '_> {
    fn message(&self, message: &whatsapp::Message<'_>) -> Result<Option<InboundMessage>, DecodeError> {
        let mut senders = message.senders();
        if !message.is_system() {
            self.add_ids_of_contact(&mut senders, self.value.messages.0.len() == 1);
        }
        let content = match message.content()? {
            // A notice about nobody in particular.
            Content::Nothing if senders.is_empty() && message.is_system() => return Ok(None),
            content => content,
        };
        let sender = super::sender(senders)?;
        Ok(Some(InboundMessage {
            provider_message_id: message.id.owned(),
            occurred_at: message.timestamp.time(),
            ..self.event(sender, content)
        }))
    }

    fn status(&self, status: &Status<'_>) -> Result<Option<InboundMessage>, DecodeError> {
        let mut recipient = Vec::with_capacity(4);
        recipient.extend(phone_or_user_id(&status.recipient_id));
        recipient.extend(user_id(&status.recipient_user_id));
        recipient.extend(user_id(&status.recipient_parent_user_id));
        self.add_ids_of_contact(&mut recipient, self.value.statuses.0.len() == 1);
        let refused = whatsapp::is_opted_out(&status.errors);
        let Some(sender) = Identities::new(recipient) else {
            return if refused { Err(DecodeError::NoSender) } else { Ok(None) };
        };
        if !refused {
            return Ok(Some(self.event(sender, Content::Nothing)));
        }
        let id = self.synthetic_id("status", &sender, &[&status.id, &status.timestamp]);
        Ok(Some(InboundMessage {
            provider_message_id: Some(id),
            occurred_at: status.timestamp.time(),
            ..self.event(sender, Content::ProviderOptOut)
        }))
    }

    fn preference(&self, preference: &UserPreference<'_>) -> Result<Option<InboundMessage>, DecodeError> {
        let mut person = Vec::with_capacity(4);
        person.extend(phone_or_user_id(&preference.wa_id));
        person.extend(user_id(&preference.user_id));
        person.extend(user_id(&preference.parent_user_id));
        self.add_ids_of_contact(&mut person, self.value.user_preferences.0.len() == 1);
        let sender = super::sender(person)?;
        let id = self.synthetic_id("preference", &sender, &[&preference.value, &preference.timestamp]);
        let content = whatsapp::preference(&preference.category, &preference.value);
        Ok(Some(InboundMessage { provider_message_id: Some(id), occurred_at: preference.timestamp.time(), ..self.event(sender, content) }))
    }

    fn user_id_update(&self, update: &UserIdUpdate<'_>) -> Result<Option<InboundMessage>, DecodeError> {
        let changes = || [&update.user_id, &update.parent_user_id].into_iter().filter_map(|change| change.0.as_ref());
        // The number stays, so it counts among the ids under which the person was known.
        let mut old: Vec<Identity> = changes().filter_map(|change| user_id(&change.previous)).collect();
        old.extend(phone_or_user_id(&update.wa_id));
        let sender = super::sender(old)?;
        let now = Identities::new(changes().filter_map(|change| user_id(&change.current)));
        let now = now.ok_or(DecodeError::NoContent)?;
        let id = self.synthetic_id("user-id", &sender, &[&update.timestamp]);
        Ok(Some(InboundMessage {
            provider_message_id: Some(id),
            occurred_at: update.timestamp.time(),
            ..self.event(sender, Content::IdentityChange { now })
        }))
    }

    /// A message with what its place tells; id and time are the caller's, the index the collector's.
    fn event(&self, sender: Identities, content: Content) -> InboundMessage {
        let metadata = self.value.metadata.0.as_ref();
        InboundMessage {
            index: 0,
            business: OwnedBusinessHints {
                number: metadata.and_then(|metadata| metadata.display_phone_number.owned()),
                number_id: metadata.and_then(|metadata| metadata.phone_number_id.owned()),
                account: self.entry.id.owned(),
                named: None,
            },
            channel: Channel::Whatsapp,
            sender,
            provider_message_id: None,
            occurred_at: None,
            content,
            confirmed_by_provider: false,
        }
    }

    /// Adds the other ids of the same person: those of a contact that shares an id, or of the only contact beside the
    /// only event, unless the two contradict each other.
    fn add_ids_of_contact(&self, person: &mut Vec<Identity>, is_only_event: bool) {
        let mut same: Vec<&[Option<Identity>; 3]> = Vec::new();
        for id in person.iter() {
            let first = self.contacts_by_id.partition_point(|&(known, _)| known < id);
            let matching = self.contacts_by_id.iter().skip(first).take_while(|&&(known, _)| known == id);
            same.extend(matching.take(CONTACTS_OF_ONE_PERSON).filter_map(|&(_, contact)| self.contacts.get(contact)));
        }
        if let ([contact @ [phone, user, _parent]], true, true) = (self.contacts, is_only_event, same.is_empty()) {
            let names_other =
                |id: &Option<Identity>| id.as_ref().is_some_and(|id| person.iter().any(|known| known.kind() == id.kind() && known != id));
            if !names_other(phone) && !names_other(user) {
                same.push(contact);
            }
        }
        let unknown: Vec<_> = same.into_iter().flatten().flatten().filter(|id| !person.contains(id)).cloned().collect();
        person.extend(unknown);
    }

    /// An id made of account, person and `fields`.
    fn synthetic_id(&self, kind: &str, person: &Identities, fields: &[&Field<'_>]) -> String {
        let account = self.entry.id.text().unwrap_or_default();
        let person: Vec<String> = person.iter().map(Identity::to_text).collect();
        let fields: Vec<_> = fields.iter().map(|field| field.text().unwrap_or_default()).collect();
        let parts = std::iter::once(&*account).chain(person.iter().map(String::as_str)).chain(fields.iter().map(|field| &**field));
        super::synthetic_id(kind, parts)
    }
}
