//! What rdkafka does not wrap, called through its C interface: the only `unsafe` code of the crate.
//!
//! * headers whose names are any bytes (the wrapper's iterator panics on names that are not UTF-8);
//! * consuming in batches from a manually assigned consumer;
//! * topic ids, by which a topic that was deleted and created again is told from the one before.
//!
//! Each `unsafe` block says why it is sound. Facts about librdkafka are of version 2.12.1, the one that is bundled.

use super::offsets::Described;
use crate::record::Header;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::message::BorrowedMessage;
use rdkafka_sys as sys;
use std::ffi::{CStr, CString, c_char, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::time::Duration;

/// Appends the headers of a message, names as bytes.
pub(crate) fn headers<'a>(message: &'a BorrowedMessage<'_>, out: &mut Vec<Header<'a>>) {
    // SAFETY: the pointer is valid while `message` lives, and `'a` borrows `message`.
    unsafe { message_headers(message.ptr(), out) }
}

/// # Safety
/// `message` must be valid for `'a`.
unsafe fn message_headers<'a>(message: *const sys::rd_kafka_message_t, out: &mut Vec<Header<'a>>) {
    let mut list: *mut sys::rd_kafka_headers_t = ptr::null_mut();
    // SAFETY: `message` is valid; librdkafka writes a list owned by the message, or nothing.
    let found = unsafe { sys::rd_kafka_message_headers(message, &raw mut list) };
    if found != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return;
    }
    for index in 0.. {
        let (mut name, mut value, mut len) = (ptr::null::<c_char>(), ptr::null::<c_void>(), 0_usize);
        // SAFETY: `list` came from the call above; the outputs are valid places.
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

/// A consumer of manually assigned partitions that hands over many records in one call.
///
/// Never for a subscribed consumer: rebalance events would not reach rdkafka (measured: 0 of 10 records arrive).
pub(crate) struct BatchConsumer<C: ConsumerContext> {
    // Dropped before `consumer`: see `Drop`.
    queue: NonNull<sys::rd_kafka_queue_t>,
    consumer: BaseConsumer<C>,
}

// SAFETY: librdkafka's queues and clients may be used from any thread.
unsafe impl<C: ConsumerContext> Send for BatchConsumer<C> {}

impl<C: ConsumerContext> BatchConsumer<C> {
    /// Wraps a consumer that has a `group.id` (librdkafka assigns nothing without one) and is not subscribed.
    pub(crate) fn new(consumer: BaseConsumer<C>) -> Option<Self> {
        // SAFETY: the client is valid; the returned queue is a reference that `Drop` gives back.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        NonNull::new(queue).map(|queue| Self { queue, consumer })
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
        let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        // The batch call would wait the whole time even with records at hand; this one returns at the first.
        // SAFETY: the queue is valid as long as `self`.
        let first = unsafe { sys::rd_kafka_consume_queue(self.queue.as_ptr(), wait_ms) };
        let Some(first) = NonNull::new(first) else { return };
        out.push(Consumed { message: first, _consumer: PhantomData });
        let mut messages: Vec<*mut sys::rd_kafka_message_t> = vec![ptr::null_mut(); max.saturating_sub(1)];
        // SAFETY: the array has room for as many pointers as are asked for.
        let got = unsafe { sys::rd_kafka_consume_batch_queue(self.queue.as_ptr(), 0, messages.as_mut_ptr(), messages.len()) };
        let got = usize::try_from(got).unwrap_or(0);
        let messages = messages.into_iter().take(got).filter_map(NonNull::new);
        out.extend(messages.map(|message| Consumed { message, _consumer: PhantomData }));
    }
}

impl<C: ConsumerContext> Drop for BatchConsumer<C> {
    fn drop(&mut self) {
        // SAFETY: the queue came from `rd_kafka_queue_get_consumer` and is given back once, before its client goes.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

/// One record or error from a [`BatchConsumer`], given back to the client when dropped.
pub(crate) struct Consumed<'a> {
    message: NonNull<sys::rd_kafka_message_t>,
    _consumer: PhantomData<&'a ()>,
}

impl Consumed<'_> {
    /// The error that stands here instead of a record.
    pub(crate) fn error(&self) -> Option<rdkafka::types::RDKafkaErrorCode> {
        let error = self.message().err;
        (error != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| error.into())
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

    /// Appends the headers, names as bytes.
    pub(crate) fn headers<'a>(&'a self, out: &mut Vec<Header<'a>>) {
        // SAFETY: the message is valid until `self` is dropped, and `'a` borrows `self`.
        unsafe { message_headers(self.message.as_ptr(), out) }
    }

    pub(crate) fn timestamp_ms(&self) -> Option<i64> {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid and `kind` is a valid place.
        let millis = unsafe { sys::rd_kafka_message_timestamp(self.message.as_ptr(), &raw mut kind) };
        (millis >= 0).then_some(millis)
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

/// A topic's id and partition count; `None` where the broker does not tell (librdkafka's mock does not).
pub(crate) fn describe_topic<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str, timeout: Duration) -> Option<Described> {
    let name = CString::new(topic).ok()?;
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let client = consumer.client().native_ptr();
    // SAFETY: every object is created here, used while it lives, and destroyed once, in reverse order. The result
    // borrows from `event` and is read before that is destroyed.
    unsafe {
        let mut names = [name.as_ptr()];
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let queue = sys::rd_kafka_queue_new(client);
        let options = sys::rd_kafka_AdminOptions_new(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let mut text: [c_char; 1] = [0];
        sys::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, text.as_mut_ptr(), 0);
        sys::rd_kafka_DescribeTopics(client, topics, options, queue);
        let event = sys::rd_kafka_queue_poll(queue, timeout_ms);
        let described = described_topic(event);
        if !event.is_null() {
            sys::rd_kafka_event_destroy(event);
        }
        sys::rd_kafka_AdminOptions_destroy(options);
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_TopicCollection_destroy(topics);
        described
    }
}

/// # Safety
/// `event` is null or a valid event.
unsafe fn described_topic(event: *mut sys::rd_kafka_event_t) -> Option<Described> {
    // SAFETY: librdkafka accepts null here and answers null for an event of another kind.
    let result = unsafe { sys::rd_kafka_event_DescribeTopics_result(event) };
    if event.is_null() || result.is_null() {
        return None;
    }
    let mut count = 0;
    // SAFETY: `result` is valid as long as `event`; so are the descriptions and what they point to.
    unsafe {
        let descriptions = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if descriptions.is_null() || count != 1 {
            return None;
        }
        let description = *descriptions;
        let error = sys::rd_kafka_TopicDescription_error(description);
        if !error.is_null() && sys::rd_kafka_error_code(error) != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(description);
        if id.is_null() {
            return None;
        }
        let text = CStr::from_ptr(sys::rd_kafka_Uuid_base64str(id)).to_str().ok()?;
        let mut partitions = 0;
        sys::rd_kafka_TopicDescription_partitions(description, &raw mut partitions);
        // An id of zeros is no id: a broker that does not know the topic, or does not tell.
        let told = !text.is_empty() && !text.starts_with("AAAAAAAAAAAAAAAAAAAAA") && partitions > 0;
        told.then(|| Described { id: text.to_owned(), partitions: partitions as u32 })
    }
}
