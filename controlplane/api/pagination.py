"""Lists are cursor-paged: stable while rows arrive, and as quick at the end as at the start."""

from rest_framework import pagination


class CursorPagination(pagination.CursorPagination):
    ordering = "-created_at"
    page_size_query_param = "page_size"
    max_page_size = 500
