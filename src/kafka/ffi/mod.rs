//! What rdkafka does not wrap, or wraps at a price, called through its C interface: the only `unsafe` code of the Kafka
//! edge.
//!
//! * [`consume`]: records in batches, from consumers assigned by hand and from members of groups; headers whose names
//!   are any bytes (the wrapper's iterator panics on names that are not UTF-8);
//! * [`membership`]: under which id and in which generation a member is in its group;
//! * [`produce`]: records written under topic handles that are looked up once, and brokers asked for before that;
//! * [`describe`]: topic ids;
//! * [`memory`]: how long pages are kept that the client has freed.
//!
//! Each `unsafe` block says why it is sound. Facts about librdkafka are of version 2.12.1, the one that is bundled.

pub(crate) mod consume;
pub(crate) mod describe;
pub(crate) mod membership;
pub(crate) mod memory;
pub(crate) mod produce;
