"""`pabee-fast report`."""

from pabee_fast.cli.loading import loading, use_threads
from pabee_fast.cli.options import takes
from pabee_fast.cli.show import quieten_transformers
from pabee_fast.report.settings import ReportSettings
from pabee_fast.shown import plain


@takes(ReportSettings)
def report_command(settings: ReportSettings) -> None:
    """Write one HTML page: what every head, rule and truncated model is worth, what it saves, and how sure that is."""
    with loading():
        from pabee_fast.report.make import make_report

    use_threads(settings.threads)
    quieten_transformers()
    for line in make_report(settings).lines:
        print(plain(line))
    print(plain(f"wrote {settings.output}"))
