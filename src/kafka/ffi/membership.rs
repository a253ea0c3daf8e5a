//! Under which id, and in which generation, a member is in its group.

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka_sys as sys;
use std::ffi::CStr;
use std::sync::Arc;

/// A membership of a group, as the client knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Membership {
    /// The id that the group gave the member when it joined. A member that the group forgets gets another when it comes back.
    pub(crate) member: Arc<str>,
    /// The number of the group's last assignment that the member took part in.
    pub(crate) generation: u32,
}

/// The membership of this moment; `None` where the client has none.
pub(crate) fn membership<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<Membership> {
    // SAFETY: the client is valid. What it returns is ours, is read while it lives, and is given back once; the id in it is a C
    // string, or null.
    unsafe {
        let metadata = sys::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
        if metadata.is_null() {
            return None;
        }
        let member = sys::rd_kafka_consumer_group_metadata_member_id(metadata);
        let member = if member.is_null() { None } else { CStr::from_ptr(member).to_str().ok().map(Arc::from) };
        let generation = u32::try_from(sys::rd_kafka_consumer_group_metadata_generation_id(metadata));
        sys::rd_kafka_consumer_group_metadata_destroy(metadata);
        // A client that was told to forget its membership keeps an empty id, or no generation.
        let member = member.filter(|member: &Arc<str>| !member.is_empty())?;
        Some(Membership { member, generation: generation.ok()? })
    }
}
