//! Shifting dates by whole days.

/// Days from 0000-03-01 of the proleptic Gregorian calendar (after Hinnant, "chrono-compatible low-level date algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Shifts `YYYYMMDD`, or a date that older software writes as `YYYY.MM.DD` or `YYYY-MM-DD`, into the past.
/// `None` for what is no date.
pub(crate) fn shift_date(text: &str, days: u32) -> Option<String> {
    let text = text.trim_matches(['\0', ' ']);
    let digits: String = match text.len() {
        8 => text.to_owned(),
        10 => text.split(['.', '-', '/']).collect(),
        _ => return None,
    };
    if digits.len() != 8 || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| digits[range].parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    if year == 0 || !(1..=12).contains(&month) || !(1..=days_in_month(year, month)).contains(&day) {
        return None;
    }
    let (year, month, day) = civil_from_days(days_from_civil(year, month, day) - i64::from(days));
    (year > 0).then(|| format!("{year:04}{month:02}{day:02}"))
}

/// Shifts a DT value (PS3.5 6.2) into the past. A value that names only a year or a month is taken as its first
/// day and keeps its precision; the offset from UTC, which tells the region, goes.
pub(crate) fn shift_datetime(text: &str, days: u32) -> Option<String> {
    let text = text.trim_matches(['\0', ' ']);
    let local = text.split(['+', '-']).next().unwrap_or_default();
    let digits = local.bytes().take_while(u8::is_ascii_digit).count();
    let rest = &local[digits..];
    let fraction =
        rest.is_empty() || (rest.starts_with('.') && rest[1..].bytes().all(|c| c.is_ascii_digit()));
    if !fraction {
        return None;
    }
    match digits {
        4 => Some(shift_date(&format!("{local}0101"), days)?[..4].to_owned()),
        6 => Some(shift_date(&format!("{local}01"), days)?[..6].to_owned()),
        8 | 10 | 12 | 14 => Some(shift_date(&local[..8], days)? + &local[8..]),
        _ => None,
    }
}

/// A TM value as it stands; `None` for what is no time.
pub(crate) fn keep_time(text: &str) -> Option<String> {
    let text = text.trim_matches(['\0', ' ']);
    let plain: String = text.split(':').collect();
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let digits = |part: &str| part.bytes().all(|c| c.is_ascii_digit());
    (matches!(whole.len(), 2 | 4 | 6) && digits(whole) && fraction.len() <= 6 && digits(fraction))
        .then_some(plain.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_move_back_over_months_leap_days_and_centuries() {
        assert_eq!(shift_date("20240301", 1).as_deref(), Some("20240229"));
        assert_eq!(shift_date("20230301", 1).as_deref(), Some("20230228"));
        assert_eq!(shift_date("20000101", 366).as_deref(), Some("19981231"));
        assert_eq!(shift_date("1997.04.24", 30).as_deref(), Some("19970325"));
        assert_eq!(shift_date("2020-01-31", 31).as_deref(), Some("20191231"));
    }

    #[test]
    fn what_is_no_date_is_told() {
        for text in [
            "",
            "2024",
            "20240230",
            "20241301",
            "00000101",
            "2024010a",
            "yesterday!",
            "20240101-20240202",
            "１２３",
        ] {
            assert_eq!(shift_date(text, 5), None, "{text:?}");
        }
    }

    #[test]
    fn datetimes_keep_their_precision_and_lose_the_zone() {
        assert_eq!(shift_datetime("20240301123000.25+0100", 1).as_deref(), Some("20240229123000.25"));
        assert_eq!(shift_datetime("2024", 1).as_deref(), Some("2023"));
        assert_eq!(shift_datetime("202403", 40).as_deref(), Some("202401"));
        assert_eq!(shift_datetime("20240301T12", 1), None);
        assert_eq!(shift_datetime("é", 1), None);
    }

    #[test]
    fn times_stay() {
        assert_eq!(keep_time("10:11:12.5").as_deref(), Some("101112.5"));
        assert_eq!(keep_time("1011").as_deref(), Some("1011"));
        assert_eq!(keep_time("Smith"), None);
    }

    #[test]
    fn the_calendar_agrees_with_itself_over_eight_centuries() {
        let mut days = days_from_civil(1600, 1, 1);
        for (year, month) in (1600..2400).flat_map(|y| (1..=12).map(move |m| (y, m))) {
            for day in 1..=days_in_month(year, month) {
                assert_eq!(days_from_civil(year, month, day), days);
                assert_eq!(civil_from_days(days), (year, month, day));
                days += 1;
            }
        }
    }
}
