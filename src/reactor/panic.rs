//! Records where reactor threads panic, for the log. Other threads keep their panic hook.
use std::cell::RefCell;
use std::sync::Once;

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Installs a panic hook that records panics of reactor threads instead of printing them.
pub fn record_locations() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            if !thread.name().is_some_and(|name| name.starts_with("reactor-")) {
                return previous(info);
            }
            let payload = info.payload();
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let message = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
            let location = info.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
            LAST.with(|last| {
                if let Ok(mut last) = last.try_borrow_mut() {
                    *last = format!("{location}: {message}");
                }
            });
        }));
    });
}

/// Takes the location and message of the last panic of this thread.
pub fn take_last() -> String {
    LAST.with(RefCell::take)
}
