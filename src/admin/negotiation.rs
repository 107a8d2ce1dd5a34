//! Which format of the metrics a scraper prefers (RFC 9110 12.5.1).

/// Whether `Accept` in the request head prefers OpenMetrics 1.0 to the text format of Prometheus. Without
/// `Accept`, or with neither type in it, the text format is sent, as it always was.
pub fn prefers_open_metrics(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    let accept = text.lines().skip(1).filter_map(|line| line.split_once(':'));
    let accept = accept.filter(|(name, _)| name.eq_ignore_ascii_case("accept")).map(|(_, value)| value);
    let (mut open_metrics, mut plain) = (0.0_f32, 0.0_f32);
    for range in accept.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut quality, mut has_version) = (1.0, true);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => quality = value.trim().parse().unwrap_or(0.0),
                "version" => has_version = value.trim() == "1.0.0",
                _ => {}
            }
        }
        match media_type.as_str() {
            "application/openmetrics-text" if has_version => open_metrics = open_metrics.max(quality),
            "text/plain" => plain = plain.max(quality),
            _ => {}
        }
    }
    open_metrics > 0.0 && open_metrics >= plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quality_decides() {
        for (fields, expected) in [
            ("", false),
            ("Accept: */*\r\n", false),
            ("Accept: text/plain\r\n", false),
            ("accept: application/openmetrics-text\r\n", true),
            // Prometheus 3, and an older one.
            (
                "Accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2\r\n",
                true,
            ),
            (
                "Accept: application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n",
                false,
            ),
            ("Accept: application/openmetrics-text;q=0.3\r\nAccept: text/plain;q=0.5\r\n", false),
            ("Accept: application/openmetrics-text;q=0\r\n", false),
            ("Accept: application/openmetrics-text;q=many\r\n", false),
            ("X-Accept: application/openmetrics-text\r\n", false),
        ] {
            let head = format!("GET /metrics HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            assert_eq!(prefers_open_metrics(head.as_bytes()), expected, "{fields}");
        }
    }
}
