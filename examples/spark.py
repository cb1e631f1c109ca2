"""Score a column of a Spark DataFrame: `python examples/spark.py MODEL_DIRECTORY TABLE.parquet [--policy P]`.

Spark's `predict_batch_udf` loads the model once for each Python worker and hands it batches of texts; every executor
must have this package and see the model under the same name. Needs pyspark 4 and Java 17.
"""

from collections.abc import Callable

import numpy as np
import typer
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.types import DoubleType, IntegerType, StringType, StructField, StructType

import pabee_fast as pf

RESULTS = StructType(
    [
        StructField("prediction", StringType()),
        StructField("score", DoubleType()),
        StructField("exit_layer", IntegerType()),
        StructField("error", StringType()),
    ]
)

Predict = Callable[[np.ndarray], dict[str, np.ndarray]]


def predictor(model: str, policy: str) -> Callable[[], Predict]:
    """What `predict_batch_udf` takes: it is called once in each worker, which has a core of its own."""

    def load() -> Predict:
        scorer = pf.BatchScorer(model, policy, threads=1)

        def predict(texts: np.ndarray) -> dict[str, np.ndarray]:
            columns = scorer({"text": np.asarray(texts, dtype=object)})
            return {name: columns[name] for name in RESULTS.names}

        return predict

    return load


def main(model: str, table: str, policy: str = "patience:1") -> None:
    spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        score = predict_batch_udf(predictor(model, policy), return_type=RESULTS, batch_size=1024)
        scored = spark.read.parquet(table).withColumn("result", score("text")).select("text", "result.*")
        for row in scored.collect():
            print(f"{row.prediction}\t{row.exit_layer}\t{row.text}")
    finally:
        spark.stop()


if __name__ == "__main__":
    typer.run(main)
