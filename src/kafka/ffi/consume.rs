//! Records in batches.

use crate::record::Header;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys as sys;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::time::Duration;

/// A reference to one of the client's queues. It must be dropped before its client is.
struct Queue(NonNull<sys::rd_kafka_queue_t>);

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl Send for Queue {}

impl Queue {
    /// Appends up to `max` records or errors to `out`; waits at most `wait` for the first and not for a second.
    ///
    /// # Safety
    /// The queue's client must outlive `'a`.
    unsafe fn consume<'a>(&self, wait: Duration, max: usize, out: &mut Vec<Consumed<'a>>) {
        let mut room = max;
        if !wait.is_zero() {
            let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
            // The batch call would wait the whole time even with records at hand; this one returns at the first.
            // SAFETY: the queue is valid as long as `self`.
            let first = unsafe { sys::rd_kafka_consume_queue(self.0.as_ptr(), wait_ms) };
            let Some(first) = NonNull::new(first) else { return };
            out.push(Consumed { message: first, _client: PhantomData });
            room = room.saturating_sub(1);
        }
        // A `Consumed` is a pointer to a message and nothing else: the client writes right behind those that are there.
        out.reserve(room);
        let place = out.spare_capacity_mut().as_mut_ptr().cast::<*mut sys::rd_kafka_message_t>();
        // SAFETY: `reserve` made room for `room` pointers at `place`, and `Consumed` is `repr(transparent)` over one.
        let got = unsafe { sys::rd_kafka_consume_batch_queue(self.0.as_ptr(), 0, place, room) };
        let got = usize::try_from(got).unwrap_or(0);
        // SAFETY: the client has written `got` valid messages, none of them null, which are owned from here on.
        unsafe { out.set_len(out.len() + got) };
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: owned, and given back once, before its client goes (see the type).
        unsafe { sys::rd_kafka_queue_destroy(self.0.as_ptr()) }
    }
}

/// A consumer of manually assigned partitions that hands over many records in one call.
///
/// Never for a subscribed consumer: rebalance events would not reach rdkafka (measured: 0 of 10 records arrive).
pub(crate) struct BatchConsumer<C: ConsumerContext> {
    // Dropped before `consumer`: fields are dropped in the order in which they are declared.
    queue: Queue,
    consumer: BaseConsumer<C>,
}

impl<C: ConsumerContext> BatchConsumer<C> {
    /// Wraps a consumer that has a `group.id` (librdkafka assigns nothing without one) and is not subscribed.
    pub(crate) fn new(consumer: BaseConsumer<C>) -> Option<Self> {
        // SAFETY: the client is valid; the returned queue is a reference that `Queue` gives back.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        NonNull::new(queue).map(|queue| Self { queue: Queue(queue), consumer })
    }

    /// The wrapped consumer.
    pub(crate) fn consumer(&self) -> &BaseConsumer<C> {
        &self.consumer
    }

    /// Replaces `out` with up to `max` records or errors; waits at most `wait` for the first and not for a second.
    ///
    /// When this returns, positions ([`Consumer::position`]) have passed all that is in `out` and the transaction
    /// markers served between, and nothing else.
    pub(crate) fn consume<'a>(&'a self, wait: Duration, max: usize, out: &mut Vec<Consumed<'a>>) {
        out.clear();
        // SAFETY: `'a` borrows the client.
        unsafe { self.queue.consume(wait, max, out) }
    }
}

/// A member of a group whose records come past the queue that rdkafka polls, many in one call.
///
/// The batch call must not be used on a subscribed consumer's own queue: it would take rebalance events out of it and
/// away from rdkafka. So the queue of each partition is forwarded to one that holds records and their errors alone, and
/// the consumer's own is left to rdkafka. For one thread.
pub(crate) struct MemberConsumer<C: ConsumerContext> {
    // Dropped before `consumer`: fields are dropped in the order in which they are declared.
    /// The queue of each partition that is read.
    partitions: RefCell<Vec<(CString, i32, Queue)>>,
    records: Queue,
    /// The queue that rdkafka polls.
    events: Queue,
    consumer: BaseConsumer<C>,
}

impl<C: ConsumerContext> MemberConsumer<C> {
    /// Wraps a consumer that is to be subscribed.
    pub(crate) fn new(consumer: BaseConsumer<C>) -> Option<Self> {
        // SAFETY: the client is valid; both queues are references that `Queue` gives back.
        let (records, events) = unsafe {
            let client = consumer.client().native_ptr();
            (sys::rd_kafka_queue_new(client), sys::rd_kafka_queue_get_consumer(client))
        };
        let (records, events) = (Queue(NonNull::new(records)?), Queue(NonNull::new(events)?));
        Some(Self { partitions: RefCell::default(), records, events, consumer })
    }

    /// Whether anything waits to be polled. That a poll returned nothing does not tell: it ends with the first event that is
    /// no record, and others may stand behind it.
    pub(crate) fn has_events(&self) -> bool {
        // SAFETY: the queue is valid as long as `self`.
        unsafe { sys::rd_kafka_queue_length(self.events.0.as_ptr()) > 0 }
    }

    /// The wrapped consumer.
    pub(crate) fn consumer(&self) -> &BaseConsumer<C> {
        &self.consumer
    }

    /// Leads a partition's records here. To be called before the partition is assigned, so that none goes elsewhere.
    pub(crate) fn lead(&self, topic: &str, partition: u32) {
        let (Ok(topic), Ok(partition)) = (CString::new(topic), i32::try_from(partition)) else { return };
        // SAFETY: the client and the name are valid; the returned queue is a reference that `Queue` gives back.
        let queue = unsafe { sys::rd_kafka_queue_get_partition(self.consumer.client().native_ptr(), topic.as_ptr(), partition) };
        let Some(queue) = NonNull::new(queue) else { return };
        self.partitions.borrow_mut().push((topic, partition, Queue(queue)));
        self.lead_again();
    }

    /// A partition is not read any more.
    pub(crate) fn leave(&self, topic: &str, partition: u32) {
        let is_it = |(name, number, _): &(CString, i32, Queue)| name.as_bytes() == topic.as_bytes() && u32::try_from(*number) == Ok(partition);
        self.partitions.borrow_mut().retain(|known| !is_it(known));
    }

    /// The client ends a forwarding, unseen, when it has stopped fetching a partition, which may be after that partition
    /// was taken again: forwarding is renewed each time, and what was queued meanwhile comes along, in order.
    fn lead_again(&self) {
        for (_, _, queue) in self.partitions.borrow().iter() {
            // SAFETY: both queues are valid; forwarding again what is forwarded already changes nothing.
            unsafe { sys::rd_kafka_queue_forward(queue.0.as_ptr(), self.records.0.as_ptr()) }
        }
    }

    /// Appends up to `max` records or errors to `out`; waits at most `wait` for the first and not for a second.
    pub(crate) fn consume<'a>(&'a self, wait: Duration, max: usize, out: &mut Vec<Consumed<'a>>) {
        self.lead_again();
        // SAFETY: `'a` borrows the client.
        unsafe { self.records.consume(wait, max, out) }
    }
}

impl<C: ConsumerContext> Drop for MemberConsumer<C> {
    fn drop(&mut self) {
        for (_, _, queue) in self.partitions.get_mut() {
            // SAFETY: the queue is valid; its records stay with the client from here on.
            unsafe { sys::rd_kafka_queue_forward(queue.0.as_ptr(), ptr::null_mut()) }
        }
    }
}

/// One record, or an error that stands in its place, given back to the client when dropped.
#[repr(transparent)]
pub(crate) struct Consumed<'a> {
    message: NonNull<sys::rd_kafka_message_t>,
    _client: PhantomData<&'a ()>,
}

impl Consumed<'_> {
    /// The error that stands here instead of a record.
    pub(crate) fn error(&self) -> Option<RDKafkaErrorCode> {
        let error = self.message().err;
        (error != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| error.into())
    }

    /// The topic, as the client's own number of it: the same for all records of a topic.
    pub(crate) fn topic_number(&self) -> usize {
        self.message().rkt as usize
    }

    /// The topic's name.
    pub(crate) fn topic(&self) -> Option<&str> {
        let topic = self.message().rkt;
        // SAFETY: where a message has a topic, its name is a C string that lives as long as the message.
        if topic.is_null() { None } else { unsafe { CStr::from_ptr(sys::rd_kafka_topic_name(topic)) }.to_str().ok() }
    }

    pub(crate) fn partition(&self) -> Option<u32> {
        u32::try_from(self.message().partition).ok()
    }

    pub(crate) fn offset(&self) -> Option<u64> {
        u64::try_from(self.message().offset).ok()
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        let message = self.message();
        // SAFETY: librdkafka gives a pointer to as many bytes as it says, for as long as the message lives.
        (!message.key.is_null()).then(|| unsafe { std::slice::from_raw_parts(message.key.cast(), message.key_len) })
    }

    pub(crate) fn value(&self) -> Option<&[u8]> {
        let message = self.message();
        // SAFETY: as for `key`.
        (!message.payload.is_null()).then(|| unsafe { std::slice::from_raw_parts(message.payload.cast(), message.len) })
    }

    /// Appends the headers, names as bytes. Most records have none, and then nothing is allocated.
    pub(crate) fn headers<'a>(&'a self, out: &mut Vec<Header<'a>>) {
        let Some(list) = self.native_headers() else { return };
        for index in 0.. {
            let (mut name, mut value, mut len) = (ptr::null::<c_char>(), ptr::null::<c_void>(), 0_usize);
            // SAFETY: the list is valid while the message lives; the outputs are valid places.
            let error = unsafe { sys::rd_kafka_header_get_all(list, index, &raw mut name, &raw mut value, &raw mut len) };
            if error != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return;
            }
            // SAFETY: librdkafka ends names with NUL and keeps names and values as long as the message, which outlives `'a`.
            let header = unsafe {
                Header {
                    name: CStr::from_ptr(name).to_bytes(),
                    value: (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), len)),
                }
            };
            out.push(header);
        }
    }

    /// The client's own list of headers, valid while the message lives.
    pub(super) fn native_headers(&self) -> Option<*const sys::rd_kafka_headers_t> {
        let mut list: *mut sys::rd_kafka_headers_t = ptr::null_mut();
        // SAFETY: the message is valid; librdkafka writes a list owned by the message, or nothing.
        let found = unsafe { sys::rd_kafka_message_headers(self.message.as_ptr(), &raw mut list) };
        (found == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then_some(list.cast_const())
    }

    pub(crate) fn timestamp_ms(&self) -> Option<i64> {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid and `kind` is a valid place.
        let millis = unsafe { sys::rd_kafka_message_timestamp(self.message.as_ptr(), &raw mut kind) };
        (millis >= 0).then_some(millis)
    }

    /// Whether the broker set the timestamp when it appended the record.
    pub(crate) fn has_append_time(&self) -> bool {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid and `kind` is a valid place.
        unsafe { sys::rd_kafka_message_timestamp(self.message.as_ptr(), &raw mut kind) };
        kind == sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME
    }

    fn message(&self) -> &sys::rd_kafka_message_t {
        // SAFETY: valid until dropped, and only read.
        unsafe { self.message.as_ref() }
    }
}

impl Drop for Consumed<'_> {
    fn drop(&mut self) {
        // SAFETY: owned, and given back once.
        unsafe { sys::rd_kafka_message_destroy(self.message.as_ptr()) }
    }
}
