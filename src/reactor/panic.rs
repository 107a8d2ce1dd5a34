//! Where a panic was, for the log.
//!
//! In: panics of reactor threads. Out: the place and the message of the last one on this
//! thread. Invariant: other threads keep the hook they had; nothing here can panic itself.
use std::cell::RefCell;
use std::sync::Once;

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Makes reactor threads remember the place of a panic instead of printing it.
pub fn remember_places() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            if !thread.name().is_some_and(|name| name.starts_with("reactor-")) {
                return before(info);
            }
            let payload = info.payload();
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let message = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
            let place = info.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
            LAST.with(|last| {
                if let Ok(mut last) = last.try_borrow_mut() {
                    *last = format!("{place}: {message}");
                }
            });
        }));
    });
}

/// The place and the message of this thread's last panic.
pub fn last_place() -> String {
    LAST.with(RefCell::take)
}
