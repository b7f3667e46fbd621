# ruff: noqa: E501
"""The ways in which exchanges, stores, servers and networks answer wrongly: where the table of each kind is tested."""

import ast
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent

LIES = {
    "time from the future": "ingest/test_lies_about_time.py::test_one_frame_ends_no_minute_and_stops_no_chart",
    "stamps of every other kind": "ingest/test_exchange_clock.py::test_one_frame_never_moves_the_clock",
    "one bad row of a page": "plugins/bitget/test_bitget_bad_rows.py::test_a_bad_row_of_a_page_costs_itself_and_names_its_minute",
    "one bad row of a frame": "plugins/bitget/test_bitget_bad_rows.py::test_a_bad_row_of_a_frame_costs_itself",
    "success with nothing": "ingest/test_beginning_of_history.py::test_a_success_with_nothing_is_never_taken_for_an_answer",
    "no history before the listing": "ingest/test_beginning_of_history.py::test_the_beginning_of_history_is_taken_from_other_sources",
    "a market refused or not listed": "ingest/test_rejected_symbols.py::test_evidence_from_the_stream_beats_the_list",
    "silence": "ingest/test_presence.py::test_only_an_answer_for_these_minutes_makes_a_market_quiet",
    "a stream cut while REST works": "ingest/test_presence.py::test_while_the_market_trades_no_silence_is_ever_called_quiet",
    "a machine that slept": "ingest/test_asleep.py::test_after_a_sleep_with_only_rest_the_chart_is_up_to_date",
    "history that was imported": "ingest/test_stored_past.py::test_imported_history_is_served_with_the_exchange_out_of_reach",
    "a Redis that refuses": "bus/test_redis_refuses.py::test_what_redis_refuses_is_named_and_shown_and_heals",
    "a store that hangs without an error": "store/test_store_writer.py::test_a_store_is_unavailable_while_another_call_hangs_before_the_write",
    "a stop during the start": "system/test_stop_early.py::test_it_obeys_whatever_it_waits_for",
    "a hangup": "system/test_stop_early.py::test_a_hangup_reloads_the_settings",
    "few file descriptors": "system/test_few_descriptors.py::test_clients_beyond_the_limit_get_503_and_the_exchange_comes_back",
    "proxies": "ingest/test_tunnel.py::test_a_connection_takes_the_proxy_and_names_it_where_it_fails",
    "several addresses": "serve/test_listening.py::test_clients_are_served_on_every_address_with_one_port",
    "sections that share a host": "test_request_budgets.py::test_clients_of_one_host_share_one_budget",
    "a path prefix": "api/test_prefix.py::test_next_and_link_lead_to_all_bars",
    "the dialect of a first message": "api/test_kline_streams.py::test_the_first_message_decides_which_protocol_a_connection_speaks",
    "errors of kline streams": "system/test_bots.py::test_a_library_is_sent_bars_and_told_of_an_interval_that_is_not_configured",
    "freqtrade's archive": "system/test_bots.py::test_freqtrade_downloads_and_backtests_as_the_page_says",
    "typed decoders": "api/test_klines.py::test_exchange_info_has_every_field_that_a_typed_decoder_wants",
    "HEAD of a streamed answer": "api/test_rest.py::test_a_head_of_a_streamed_answer_has_neither_length_nor_version",
    "the unit of times": "api/test_klines.py::test_times_are_in_the_unit_that_is_asked_for",
    "the first seconds of a minute": "api/test_kline_order.py::test_a_new_bar_does_not_wait_long_for_the_end_of_the_old_one_which_is_sent_when_it_is_known",
    "a command beside a daemon": "tools/test_beside_daemon.py::test_no_command_with_other_settings_touches_the_bars_of_a_running_daemon",
    "a stop behind a boundary": "ingest/test_restored.py::test_after_a_stop_behind_a_boundary_and_a_start_without_the_exchange_every_minute_is_shown",
    "streams after a restart": "api/test_kline_order.py::test_after_a_restart_around_a_minutes_end_no_stream_goes_back",
    "the bar in which history begins": "ingest/test_stored_past.py::test_the_bar_in_which_history_begins_is_served_where_nothing_exists_before",
    "bars where no minutes are": "tools/test_verify_bad_rows.py::test_bars_where_no_minutes_are_are_found_and_removed",
    "values that are no numbers": "tools/test_verify_bad_rows.py::test_a_value_that_is_no_number_is_named_with_its_place_and_mended",
    "a minute changed in mid-bucket": "tools/test_verify_bad_rows.py::test_a_minute_changed_in_the_middle_of_every_bar_contradicts_its_neighbour",
    "revisions of old minutes": "ingest/test_old_revisions.py::test_a_revision_of_an_old_minute_is_taken_counted_and_published",
    "repair by the exchange's word": "tools/test_exchange_repair.py::test_minutes_that_differ_become_the_exchanges_own",
    "digits that a float loses": "api/test_dialects.py::test_strings_keep_the_digits_that_a_float_loses",
    "texts that cannot be encoded": "api/test_odd_input.py::test_each_odd_value_is_answered_wherever_it_stands",
    "numbers of endless digits": "model/test_candle.py::test_an_impossible_candle_is_refused",
    "bodies that are long or expand": "ingest/test_http_bounds.py::test_a_body_is_bounded_before_and_after_decompression",
    "a pause without end": "ingest/test_http_bounds.py::test_a_pause_that_an_exchange_asks_for_is_an_hour_at_most",
    "a flood of frames": "ingest/test_feeds.py::test_a_feed_that_sends_too_much_is_interrupted",
    "symbols that were not subscribed": "ingest/test_feeds.py::test_events_about_symbols_that_were_not_subscribed_are_ignored_and_counted",
    "redirects": "ingest/test_feeds.py::test_a_redirect_leads_only_to_the_same_host_and_scheme",
    "a storm of revisions": "ingest/test_old_revisions.py::test_a_storm_of_revisions_becomes_one_request",
    "forged lines of the log": "test_logs.py::test_a_record_is_one_line_without_secrets_whichever_library_wrote_it",
    "a flood of log lines": "test_logs.py::test_a_flood_from_one_place_is_a_bounded_number_of_lines_and_their_count",
    "a file that others do not see": "store/test_sqlite_store.py::test_a_file_that_others_do_not_see_is_neither_read_nor_written_until_it_is_back",
    "failing reads": "store/test_store_history.py::test_failing_reads_are_a_state_and_two_log_lines",
    "everything at the same time": "simulation/test_lies.py::test_after_any_faults_store_and_charts_are_as_the_exchange",
}  # fmt: skip


def test_every_kind_of_lie_has_its_test():
    assert [
        kind for kind, test in LIES.items() if test.partition("::")[2] not in names_in(test.partition("::")[0])
    ] == []


@cache
def names_in(file: str) -> set[str]:
    """Return the names of the tests of a file."""
    body = ast.parse((TESTS / file).read_text("utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
