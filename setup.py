"""Package definition. Versions are bounded to the lines that the test suite was run on."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="evatok_jax",
    version="0.1.0",
    description="EVATok in JAX: video as as few discrete tokens as its content needs.",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The experiment files live at the top of the checkout and travel in the wheel as package data,
    # so that --config=configs/X.py means the same thing in both.
    packages=[*find_packages(include=["evatok_jax", "evatok_jax.*"]), "evatok_jax.configs"],
    package_dir={"evatok_jax.configs": "configs"},
    package_data={"evatok_jax": ["report/*.css"]},
    install_requires=[
        "absl-py>=2.1,<3",
        "array-record>=0.8,<0.9",
        "av>=18,<19",
        "einops>=0.8,<0.9",
        "etils>=1.9,<2",
        "flax>=0.12,<0.13",
        "grain>=0.2.16,<0.3",
        "jax>=0.10,<0.13",
        "jaxtyping>=0.3,<0.4",
        "matplotlib>=3.9,<4",
        "ml-collections>=1.0,<2",
        "ml-dtypes>=0.5,<1",
        "numpy>=2.0,<3",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "pillow>=11,<14",
        "scipy>=1.14,<2",
        "tensorboardX>=2.6,<3",
        "tensorflow-datasets>=4.9.8,<5",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "cuda13": ["jax[cuda13]>=0.10,<0.13"],
        "test": [
            "beartype>=0.21,<0.24",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.12,<0.18",
            "safetensors>=0.5,<1",
        ],
    },
    entry_points={"console_scripts": ["evatok=evatok_jax.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
    ],
)
