//! A TCP proxy between the program and its broker: what a network does to packets, on purpose.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How often a connection looks whether the weather has changed.
const TICK: Duration = Duration::from_millis(20);

/// What happens to all connections.
#[derive(Default)]
struct Weather {
    /// Each piece of data waits for so long.
    delay_ms: AtomicU64,
    /// Nothing gets through, and nobody is told.
    is_hole: AtomicBool,
    /// Requests of these kinds wait, a bit for each, and all that follows them on their connection.
    held: AtomicU64,
    /// Connections of an earlier generation are cut.
    generation: AtomicU64,
    ended: AtomicBool,
}

/// A proxy on a port of its own; gone when dropped.
pub struct Proxy {
    address: SocketAddr,
    weather: Arc<Weather>,
}

impl Proxy {
    /// A port that leads nowhere yet: connections wait until [`Proxy::lead_to`].
    pub fn listen() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        (listener, port)
    }

    /// Leads what connects there to this port.
    pub fn lead_to(listener: TcpListener, port: u16) -> Proxy {
        let address = listener.local_addr().expect("an address");
        let weather = Arc::new(Weather::default());
        let shared = weather.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", port))) else { continue };
                let generation = shared.generation.load(Ordering::Relaxed);
                for (from, to, requests) in [(&client, &server, Some(Requests::default())), (&server, &client, None)] {
                    let (from, to, weather) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"), shared.clone());
                    std::thread::spawn(move || carry(from, to, requests, &weather, generation));
                }
            }
        });
        Proxy { address, weather }
    }

    /// `HOST:PORT` for clients.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Each piece of data waits for so long from now on, in either direction.
    pub fn delay(&self, delay: Duration) {
        self.weather.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// All connections are cut; new ones may be made.
    pub fn cut(&self) {
        self.weather.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// From now on holds requests of these kinds up, and all that follows them on their connection, and lets all others through.
    pub fn hold(&self, kinds: &[Kind]) {
        self.weather.held.store(kinds.iter().fold(0, |held, kind| held | kind.bit()), Ordering::Relaxed);
    }

    /// Swallows everything, or lets it through again.
    pub fn swallow(&self, is_hole: bool) {
        self.weather.is_hole.store(is_hole, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.weather.ended.store(true, Ordering::Relaxed);
        self.cut();
        drop(TcpStream::connect(self.address));
    }
}

/// A kind of requests, by its number in Kafka's protocol.
#[derive(Clone, Copy)]
pub enum Kind {
    Produce = 0,
    JoinGroup = 11,
}

impl Kind {
    fn bit(self) -> u64 {
        1 << self as u32
    }
}

/// Where the requests of a connection begin: each has its length in four bytes, and then the number of its kind in two.
#[derive(Default)]
struct Requests {
    head: Vec<u8>,
    /// Bytes until the next one.
    left: usize,
}

impl Requests {
    /// The kinds of requests that begin within the next bytes, a bit for each.
    fn kinds(&mut self, mut bytes: &[u8]) -> u64 {
        let mut kinds = 0;
        while !bytes.is_empty() {
            if self.left == 0 {
                let (head, rest) = bytes.split_at(bytes.len().min(6 - self.head.len()));
                self.head.extend(head);
                bytes = rest;
                if let [a, b, c, d, 0, kind] = &*self.head {
                    kinds |= 1_u64.checked_shl(u32::from(*kind)).unwrap_or_default();
                    self.left = u32::from_be_bytes([*a, *b, *c, *d]) as usize - 2;
                    self.head.clear();
                }
            } else {
                let passed = bytes.len().min(self.left);
                bytes = &bytes[passed..];
                self.left -= passed;
            }
        }
        kinds
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, mut requests: Option<Requests>, weather: &Weather, generation: u64) {
    from.set_read_timeout(Some(TICK)).expect("a timeout");
    let mut bytes = vec![0; 64 * 1024];
    while weather.generation.load(Ordering::Relaxed) == generation {
        if weather.is_hole.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
            continue;
        }
        let read = match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => continue,
            Err(_) => break,
        };
        let kinds = requests.as_mut().map_or(0, |requests| requests.kinds(&bytes[..read]));
        while kinds & weather.held.load(Ordering::Relaxed) != 0 && weather.generation.load(Ordering::Relaxed) == generation {
            std::thread::sleep(TICK);
        }
        let delay = weather.delay_ms.load(Ordering::Relaxed);
        if delay > 0 {
            std::thread::sleep(Duration::from_millis(delay));
        }
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    // Either end may have gone already.
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}
