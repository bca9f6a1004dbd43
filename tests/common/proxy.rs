//! A bad line between a daemon and its broker.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Time that every piece of data takes.
const LATENCY: Duration = Duration::from_millis(20);

/// A TCP proxy that is slow, and worse when it is told.
pub struct Proxy {
    pub port: u16,
    /// Bytes that still pass to the daemon and from it before both ends of the connection are cut off; negative: no end.
    left: [Arc<AtomicI64>; 2],
    /// Whether what the present connection sends is lost without a word.
    dead: Arc<Mutex<Arc<AtomicBool>>>,
}

/// A direction.
#[derive(Clone, Copy)]
pub enum Way {
    ToDaemon,
    FromDaemon,
}

impl Proxy {
    pub fn start(broker: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let left = [Arc::new(AtomicI64::new(-1)), Arc::new(AtomicI64::new(-1))];
        let dead: Arc<Mutex<Arc<AtomicBool>>> = Arc::default();
        let (counts, newest) = (left.clone(), Arc::clone(&dead));
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                let Ok(far) = TcpStream::connect(("127.0.0.1", broker)) else { continue };
                let dead = Arc::new(AtomicBool::new(false));
                *newest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&dead);
                for ((from, to), left) in [(&far, &near), (&near, &far)].into_iter().zip(&counts) {
                    let ends = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (left, dead) = (Arc::clone(left), Arc::clone(&dead));
                    std::thread::spawn(move || pump(ends, &left, &dead));
                }
            }
        });
        Proxy { port, left, dead }
    }

    /// Cuts the connection after so many more bytes in one direction.
    pub fn cut_after(&self, way: Way, bytes: i64) {
        self.left[way as usize].store(bytes, Ordering::SeqCst);
    }

    /// Whether the cut that was asked for has happened.
    pub fn has_cut(&self, way: Way) -> bool {
        self.left[way as usize].load(Ordering::SeqCst) < 0
    }

    /// The present connection carries nothing any more, and neither end is told.
    pub fn freeze(&self) {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner).store(true, Ordering::SeqCst);
    }
}

fn pump((mut from, mut to): (TcpStream, TcpStream), left: &AtomicI64, dead: &AtomicBool) {
    let mut buffer = [0; 4096];
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        std::thread::sleep(LATENCY);
        if dead.load(Ordering::SeqCst) {
            continue;
        }
        let allowed = left.load(Ordering::SeqCst);
        let passes = usize::try_from(allowed).map_or(bytes, |allowed| allowed.min(bytes));
        if to.write_all(&buffer[..passes]).is_err() {
            break;
        }
        if allowed >= 0 {
            if passes < bytes {
                left.store(-1, Ordering::SeqCst);
                break;
            }
            left.fetch_sub(passes as i64, Ordering::SeqCst);
        }
    }
    // A frozen end hears of nothing.
    if !dead.load(Ordering::SeqCst) {
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}
